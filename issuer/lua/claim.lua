-- Claims, many in one call, each decided on its own and all of them atomically.
--
-- The text of antifraud/gate.lua goes in front of this one and brings gate_check and gate_won.
--
-- KEYS[1]  the shard's hash tag, such as {s0}. Never a key itself: every key below carries it, so on a
--          cluster all of them live on one node (docs/adr/0004-keys-by-hash-tag.md).
-- ARGV[i]  one claim, packed by issuer/record.py (big-endian):
--            1-2   round_no          9-16  person digest     33-40 body digest
--            3-6   stock_no         17-24  device digest     41-56 person token
--            7-8   partner_no       25-32  request digest    57-   out_request_no
--          a device digest of eight zero bytes: no device was named
--
-- Answers one string a claim, in order:
--   G<serial><ms>  granted now            serial 4 bytes, ms (campaign time) 8 bytes as a double
--   R<serial><ms>  granted before to this very request
--   or the name of a refusal: IDEMPOTENCY_MISMATCH, NOT_STARTED, ENDED, PAUSED, UNPUBLISHED, SOLD_OUT,
--   USER_ALREADY_CLAIMED, REQUEST_BLOCKED, FREQUENCY_LIMITED, DEVICE_LIMIT
--
-- Order matters. A replay is answered first, so that a retry always finds its win; the person is
-- checked before stock is touched, so that a second click never eats a voucher.
--
-- Keys of a round (written by publish.lua, erased with the round):
--   {s0}:round:<no>        opens_ms closes_ms offset_ms limit hash_buckets serial left:<stock_no> paused:<stock_no>
--   {s0}:req:<no>:<bkt>    request digest -> body digest 8, serial 4, ms 8
--   {s0}:who:<no>:<bkt>    person digest + partner_no -> how many they have
--   {s0}:log               the stream that the drain reads; one entry a call, all its wins in field w
-- Cost: about eight O(1) commands a granted claim; hashes stay small enough to be listpacks.

local tag = KEYS[1]
local no_device = string.rep('\0', 8)
local clock = redis.call('TIME')
local store_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local rounds = {}  -- what one call learns about a round it reads once and writes back at the end
local wins = {}

local function bucket_of(digest, buckets)
    local a, b, c = string.byte(digest, 1, 3)
    return (a * 65536 + b * 256 + c) % buckets
end

local function open_round(no)
    local key = tag .. ':round:' .. no
    local row = redis.call('HMGET', key, 'opens_ms', 'closes_ms', 'offset_ms', 'limit', 'hash_buckets', 'serial')
    local round = { key = key, known = row[1] and true, left = {}, taken = {}, paused = {} }
    if round.known then
        round.opens_ms, round.closes_ms, round.now_ms = tonumber(row[1]), tonumber(row[2]), store_ms + tonumber(row[3])
        round.limit, round.buckets, round.serial = tonumber(row[4]), tonumber(row[5]), tonumber(row[6])
        round.first_serial = round.serial
        round.req, round.who = tag .. ':req:' .. no .. ':', tag .. ':who:' .. no .. ':'
    end
    rounds[no] = round
    return round
end

local function left_of(round, stock_no)
    if round.left[stock_no] == nil then
        local row = redis.call('HMGET', round.key, 'left:' .. stock_no, 'paused:' .. stock_no)
        round.left[stock_no], round.paused[stock_no] = tonumber(row[1]) or -1, row[2] == '1'
        round.taken[stock_no] = 0
    end
    return round.left[stock_no]
end

local function window(round)
    if round.now_ms < round.opens_ms then return 'NOT_STARTED' end
    if round.now_ms >= round.closes_ms then return 'ENDED' end
end

local function claim(c)
    local round_no, stock_no, partner_no = struct.unpack('>HI4H', c)
    local round = rounds[round_no] or open_round(round_no)
    if not round.known then return 'UNPUBLISHED' end

    local request = string.sub(c, 25, 32)
    local req_key = round.req .. bucket_of(request, round.buckets)
    local told = redis.call('HGET', req_key, request)
    if told then
        if string.sub(told, 1, 8) ~= string.sub(c, 33, 40) then return 'IDEMPOTENCY_MISMATCH' end
        return 'R' .. string.sub(told, 9)
    end

    local shut = window(round)
    if shut then return shut end
    local left = left_of(round, stock_no)
    if left < 0 then return 'UNPUBLISHED' end
    if round.paused[stock_no] then return 'PAUSED' end

    local person, device = string.sub(c, 9, 16), string.sub(c, 17, 24)
    if device == no_device then device = '' end
    local refused = gate_check(tag, round.now_ms, person, device)
    if refused then return refused end

    local who_key, who = round.who .. bucket_of(person, round.buckets), person .. string.sub(c, 7, 8)
    local have = tonumber(redis.call('HGET', who_key, who)) or 0
    if have >= round.limit then return 'USER_ALREADY_CLAIMED' end
    if left == 0 then return 'SOLD_OUT' end

    round.left[stock_no], round.taken[stock_no] = left - 1, round.taken[stock_no] + 1
    round.serial = round.serial + 1
    local win = struct.pack('>I4d', round.serial, round.now_ms)
    redis.call('HSET', who_key, who, have + 1)
    redis.call('HSET', req_key, request, string.sub(c, 33, 40) .. win)
    gate_won(tag, round.now_ms, person, device)
    wins[#wins + 1] = win .. struct.pack('>H', #c) .. c
    return 'G' .. win
end

local answers = {}
for i = 1, #ARGV do
    answers[i] = claim(ARGV[i])
end

if #wins > 0 then
    for _, round in pairs(rounds) do
        for stock_no, taken in pairs(round.taken) do
            if taken > 0 then redis.call('HINCRBY', round.key, 'left:' .. stock_no, -taken) end
        end
        if round.known and round.serial > round.first_serial then
            redis.call('HSET', round.key, 'serial', round.serial)
        end
    end
    redis.call('XADD', tag .. ':log', '*', 'w', table.concat(wins))
end
return answers
