-- Publishes one round on one shard, once: a round that is already there is left as it is.
--
-- KEYS[1]  the shard's hash tag, such as {s0}; the key written is {s0}:round:<no>
-- ARGV     round_no, opens_ms, closes_ms, offset_ms, limit, hash_buckets, serial, then stock_no, left, paused (0/1) in turn
--          opens_ms, closes_ms in campaign time; offset_ms = campaign time less the store's (0 but in replays);
--          serial is the last one in use, left what is still to be given away
-- Answers  1 published, 0 was there before. O(stocks).

local key = KEYS[1] .. ':round:' .. ARGV[1]
if redis.call('HEXISTS', key, 'opens_ms') == 1 then return 0 end
redis.call('HSET', key, 'opens_ms', ARGV[2], 'closes_ms', ARGV[3], 'offset_ms', ARGV[4],
    'limit', ARGV[5], 'hash_buckets', ARGV[6], 'serial', ARGV[7])
for i = 8, #ARGV, 3 do
    redis.call('HSET', key, 'left:' .. ARGV[i], ARGV[i + 1], 'paused:' .. ARGV[i], ARGV[i + 2])
end
return 1
