-- The second half of a move: a shard takes what another one gave (give.lua), once.
--
-- KEYS[1]  the taker's hash tag, such as {s0}; keys: {s0}:stock:<no>, {s0}:in:<round_no> (<from> -> last seq taken)
-- ARGV     round_no, from (shard number), seq, stock_no, units
-- Answers  1 taken, now or before; 0 the stock is not published here and the units stay on their way. O(1).

local key = KEYS[1] .. ':stock:' .. ARGV[4]
if redis.call('HEXISTS', key, 'left') == 0 then return 0 end
local into = KEYS[1] .. ':in:' .. ARGV[1]
if tonumber(redis.call('HGET', into, ARGV[2]) or 0) >= tonumber(ARGV[3]) then return 1 end
redis.call('HINCRBY', key, 'left', ARGV[5])
redis.call('HINCRBY', key, 'moved', ARGV[5])
redis.call('HSET', into, ARGV[2], ARGV[3])
return 1
