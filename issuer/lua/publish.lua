-- Publishes one round on one shard, once: a round that is already there is left as it is.
--
-- KEYS[1]  the shard's hash tag, such as {s0}; the keys written are {s0}:round:<no>, {s0}:stock:<no>, {s0}:in:<no> and
--          {s0}:out:<no>
-- ARGV     round_no, how many fields, how many other shards; fields and values of the round's hash (see claim.lua);
--          for each other shard its number, the last move from it that counts as taken here, the last number of a
--          move to it; for each stock its number, left, total, moved, state (RUN, PAUSED, ENDED), adjusted
--          times in campaign time; offset_ms = campaign time less the store's (0 but in replays);
--          serial is the last one in use, left what is still to be given away
-- Answers  1 published, 0 was there before. O(stocks).

local key = KEYS[1] .. ':round:' .. ARGV[1]
if redis.call('HEXISTS', key, 'opens_ms') == 1 then return 0 end
local at = 4
for _ = 1, ARGV[2] do
    redis.call('HSET', key, ARGV[at], ARGV[at + 1])
    at = at + 2
end
for _ = 1, ARGV[3] do
    redis.call('HSET', KEYS[1] .. ':in:' .. ARGV[1], ARGV[at], ARGV[at + 1])
    redis.call('HSET', KEYS[1] .. ':out:' .. ARGV[1], 'n:' .. ARGV[at], ARGV[at + 2])
    at = at + 3
end
for i = at, #ARGV, 6 do
    redis.call('HSET', KEYS[1] .. ':stock:' .. ARGV[i], 'left', ARGV[i + 1], 'total', ARGV[i + 2],
        'moved', ARGV[i + 3], 'state', ARGV[i + 4], 'adjusted', ARGV[i + 5])
end
return 1
