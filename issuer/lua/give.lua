-- The first half of a move: a shard gives units of a stock to another one. They are on the way until given.lua
-- says that they arrived, and there is one move at a time between two shards of a round: asked again, it answers
-- the same move. So nothing is lost or doubled, whoever dies where.
--
-- KEYS[1]  the giver's hash tag, such as {s0}; keys: {s0}:stock:<no>, {s0}:out:<round_no>
--          {s0}:out:<round_no>  <to> -> move on the way, "seq:stock_no:units"; n:<to> -> last seq
-- ARGV     round_no, stock_no, to (shard number), least (units that are of use)
-- Answers  "seq:stock_no:units", or an empty string when there is nothing to give. Half of what is released and
--          left, so that the richest shard is not the next to run dry. O(1).

local out = KEYS[1] .. ':out:' .. ARGV[1]
local under_way = redis.call('HGET', out, ARGV[3])
if under_way then return under_way end
local round = redis.call('HMGET', KEYS[1] .. ':round:' .. ARGV[1], 'opens_ms', 'offset_ms', 'stages')
local key = KEYS[1] .. ':stock:' .. ARGV[2]
local row = redis.call('HMGET', key, 'left', 'total')
if not row[1] or not round[1] then return '' end
local share_bp = 10000
if round[3] ~= '' then
    local clock = redis.call('TIME')
    local after_ms = clock[1] * 1000 + math.floor(clock[2] / 1000) + round[2] - round[1]
    share_bp = 0
    for from_ms, bp in string.gmatch(round[3], '(%d+):(%d+)') do
        if tonumber(from_ms) <= after_ms then share_bp = tonumber(bp) end
    end
end
local held = math.max(math.floor(row[2] * (10000 - share_bp) / 10000), 0)  -- an edit may leave less than was dealt
local free = tonumber(row[1]) - held
local units = math.max(math.ceil(free / 2), math.min(free, tonumber(ARGV[4])))
if units <= 0 then return '' end
redis.call('HINCRBY', key, 'left', -units)
redis.call('HINCRBY', key, 'moved', -units)
local move = redis.call('HINCRBY', out, 'n:' .. ARGV[3], 1) .. ':' .. ARGV[2] .. ':' .. units
redis.call('HSET', out, ARGV[3], move)
return move
