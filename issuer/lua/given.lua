-- The end of a move: the giver forgets what the taker has taken (take.lua).
--
-- KEYS[1]  the giver's hash tag, such as {s0}; the key is {s0}:out:<round_no>
-- ARGV     round_no, to (shard number), the move as give.lua answered it
-- Answers  1 forgotten now, 0 it was another one or none. O(1).

local out = KEYS[1] .. ':out:' .. ARGV[1]
if redis.call('HGET', out, ARGV[2]) ~= ARGV[3] then return 0 end
return redis.call('HDEL', out, ARGV[2])
