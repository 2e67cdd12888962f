-- In which households of a shard a person is: a household is kept by its device, so all of them are looked through,
-- some small hashes a call.
--
--   KEYS[1]  the shard's hash tag, such as {s0}
--   ARGV     first bucket, the one after the last, the first bytes of the person's digest
--
-- Answers key, device and people of each household found, one after the other. Keys: antifraud/gate.lua (af:device).

local prefix, found = ARGV[3], {}
for bucket = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do
    local key = 'af:device:' .. KEYS[1] .. ':' .. bucket
    local fields = redis.call('HGETALL', key)
    for at = 1, #fields, 2 do
        for place = 1, #fields[at + 1], #prefix do
            if string.sub(fields[at + 1], place, place + #prefix - 1) == prefix then
                found[#found + 1] = key
                found[#found + 1] = fields[at]
                found[#found + 1] = fields[at + 1]
                break
            end
        end
    end
end
return found
