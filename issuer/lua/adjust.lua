-- Adds units to a stock on one shard, or takes some back, once for each number.
--
-- KEYS[1]  the shard's hash tag, such as {s0}; the key changed is {s0}:stock:<no>
-- ARGV     stock_no, adjust_no, delta. Numbers of a stock only rise; the last one may be asked again.
-- Answers  {1, what was applied}: of a negative delta at most what is left here;
--          {0, 0} when the stock is not published here, or a later number was applied already. O(1).

local key = KEYS[1] .. ':stock:' .. ARGV[1]
local row = redis.call('HMGET', key, 'left', 'adjusted', 'applied')
if not row[1] then return { 0, 0 } end
local adjust_no, adjusted = tonumber(ARGV[2]), tonumber(row[2])
if adjust_no == adjusted then return { 1, tonumber(row[3]) or 0 } end
if adjust_no < adjusted then return { 0, 0 } end
local delta = math.max(tonumber(ARGV[3]), -tonumber(row[1]))
redis.call('HINCRBY', key, 'left', delta)
redis.call('HINCRBY', key, 'total', delta)
redis.call('HSET', key, 'adjusted', ARGV[2], 'applied', delta)
return { 1, delta }
