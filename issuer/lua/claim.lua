-- Claims, many in one call, each decided on its own and all of them atomically.
--
-- The text of antifraud/gate.lua goes in front of this one and brings gate_check, gate_tried and gate_won.
--
-- KEYS[1]  the shard's hash tag, such as {s0}. Never a key itself: every key below carries it, so on a
--          cluster all of them live on one node (docs/adr/0004-keys-by-hash-tag.md).
-- ARGV[i]  one claim, packed by issuer/record.py (big-endian):
--            1-2  round_no          14-21 device digest      50-51 partition
--            3-4  slot of the offer 22-29 request digest     52-55 face_fen of the offer
--            5    way              30-33 body tag           56    how many parts
--            6-13 person digest     34-49 person token       57-   a part: stock_no 4, quantity 1;
--                                                                  then out_request_no
--          way: 0 a claim; 1 a grant, and the gate is not asked; 2 a claim that was asked a moment ago, found the
--          shard dry, and is asked again: it is not charged for pace twice
--          a device digest of eight zero bytes: no device was named
--
-- Answers one string a claim, in order:
--   G<serial><ms>  granted now            serial 4 bytes, ms (campaign time) 8 bytes as a double; a pack of n
--   R<serial><ms>  granted before to this very request             vouchers has the serials from this one on
--   L<ms>          later: all that was released is taken; the next stage comes then
--   or the name of a refusal: IDEMPOTENCY_MISMATCH, NOT_STARTED, ENDED, PAUSED, UNPUBLISHED, SOLD_OUT,
--   USER_ALREADY_CLAIMED, PERSON_LIMIT, GROUP_LIMIT, FACE_LIMIT, REQUEST_BLOCKED, FREQUENCY_LIMITED, DEVICE_LIMIT
--
-- Order matters. A replay is answered first, so that a retry always finds its win; the person is
-- checked before stock is touched, so that a second click never eats a voucher. A number that another person used is
-- refused where the claim would be granted: until then nobody needs to know, and the store is asked once less.
--
-- Keys (written by publish.lua; issuer/keys.py names them)
--   {s0}:round:<no>        opens_ms closes_ms offset_ms hash_buckets serial partner_limit person_limit face_max
--                          campaign_no stages slots; slots: four bytes an offer, partner_no 2, group_no, group_limit
--   {s0}:stock:<no>        left total moved state adjusted; total is what stages are shares of
--   {s0}:who:<no>:<bkt>    hash: 6 bytes of the person digest -> what they won, one record a win:
--                          slot 1, body tag 4, serial 3, ms after opening 3            while all of them fit, else
--                          slot 2 (first bit set), body tag 4, serial 4, ms 5
--   {s0}:req:<no>:<bkt>    set of integers: 48 bits of each request digest that won
--   {s0}:cap:<campaign>:<bkt>  hash: 6 bytes of the person digest -> face_fen they won in the campaign, if it is capped
--   {s0}:log               the stream that the drain reads; one entry a call, all its wins in field w
-- Small hashes stay listpacks and small sets intsets, so a win costs its bytes and no key (docs/adr/0010-thirty-bytes-a-win.md).
-- Cost: four to six O(1) commands a granted claim, two of them writes.

local tag = KEYS[1]
local no_device = string.rep('\0', 8)
local byte, sub, pack, unpack_ = string.byte, string.sub, struct.pack, struct.unpack
local call = redis.call
local SHORT_SLOTS, SHORT = 128, 16777216  -- what one byte holds beside its first bit, and three bytes
local LATER = byte('L')
local GOLDEN = 2654435761  -- as in issuer/card.py
local CAP_BUCKETS = 65521  -- alike in every round of a campaign
local clock = call('TIME')
local store_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local rounds, stocks = {}, {}  -- what one call learns it reads once and writes back at the end
local wins = {}

local function bucket_of(text, at, buckets)
    local a, b, c = byte(text, at, at + 2)
    return (a * 65536 + b * 256 + c) % buckets
end

-- The share of each stock that is out, in hundredths of a percent, and when the next stage comes.
local function released(stages, after_ms)
    local share_bp, next_ms = 0, nil
    for from_ms, bp in string.gmatch(stages, '(%d+):(%d+)') do
        if tonumber(from_ms) > after_ms then
            next_ms = tonumber(from_ms)
            break
        end
        share_bp = tonumber(bp)
    end
    return share_bp, next_ms
end

local function open_round(no)
    local key = tag .. ':round:' .. no
    local row = call('HMGET', key, 'opens_ms', 'closes_ms', 'offset_ms', 'hash_buckets', 'serial', 'partner_limit',
        'person_limit', 'face_max', 'campaign_no', 'stages', 'slots')
    local round = { key = key, known = row[1] and true }
    if round.known then
        round.opens_ms, round.closes_ms, round.now_ms = tonumber(row[1]), tonumber(row[2]), store_ms + tonumber(row[3])
        round.buckets, round.serial, round.first_serial = tonumber(row[4]), tonumber(row[5]), tonumber(row[5])
        round.partner_limit, round.person_limit, round.face_max = tonumber(row[6]), tonumber(row[7]), tonumber(row[8])
        round.share_bp = 10000
        if row[10] ~= '' then
            round.share_bp, round.next_ms = released(row[10], round.now_ms - round.opens_ms)
        end
        round.slots = row[11]
        round.req, round.who = tag .. ':req:' .. no .. ':', tag .. ':who:' .. no .. ':'
        round.cap = tag .. ':cap:' .. row[9] .. ':'
    end
    rounds[no] = round
    return round
end

local function open_stock(no)
    local key = tag .. ':stock:' .. no
    local row = call('HMGET', key, 'left', 'total', 'state')
    local stock = { key = key, left = tonumber(row[1]), total = tonumber(row[2]), state = row[3], taken = 0 }
    stocks[no] = stock
    return stock
end

local function window(round)
    if round.now_ms < round.opens_ms then return 'NOT_STARTED' end
    if round.now_ms >= round.closes_ms then return 'ENDED' end
end

-- Partner, group and limit of the group of an offer.
local function offer_of(round, slot)
    local p1, p2, group, group_limit = byte(round.slots, slot * 4 + 1, slot * 4 + 4)
    return p1 * 256 + p2, group, group_limit
end

-- Calls visit(slot, tag, serial, after_ms) for each win on record; stops when it returns something, and returns that.
local function each_win(records, visit)
    local at = 1
    while at <= #records do
        local slot, body, serial, after_ms = byte(records, at), nil, nil, nil
        if slot < SHORT_SLOTS then
            body, serial, after_ms = unpack_('>I4I3I3', records, at + 1)
            at = at + 11
        else
            slot, body, serial, after_ms = unpack_('>I2I4I4I5', records, at)
            slot = slot - SHORT_SLOTS * 256
            at = at + 15
        end
        local found = visit(slot, body, serial, after_ms)
        if found then return found end
    end
end

local function record_of(slot, body, serial, after_ms)
    if slot < SHORT_SLOTS and serial < SHORT and after_ms < SHORT then
        return pack('>BI4I3I3', slot, body, serial, after_ms)
    end
    return pack('>I2I4I4I5', slot + SHORT_SLOTS * 256, body, serial, after_ms)
end

-- What is left of a body tag without the offer: one number for one person and request number.
local function number_of(slot, body)
    return bit.bxor(body, slot * GOLDEN % 4294967296)
end

local function over_limit(round, slot, records)
    local partner_no, group, group_limit = offer_of(round, slot)
    local all, of_partner, of_group = 0, 0, 0
    each_win(records, function(won)
        local its_partner, its_group = offer_of(round, won)
        all = all + 1
        if its_partner == partner_no then of_partner = of_partner + 1 end
        if group > 0 and its_group == group then of_group = of_group + 1 end
    end)
    if of_partner >= round.partner_limit then return 'USER_ALREADY_CLAIMED' end
    if round.person_limit > 0 and all >= round.person_limit then return 'PERSON_LIMIT' end
    if group > 0 and of_group >= group_limit then return 'GROUP_LIMIT' end
end

-- Why the parts of an offer cannot be had now; takes nothing.
local function short_of(round, c, parts)
    local waits
    for i = 0, parts - 1 do
        local stock_no, quantity = unpack_('>I4B', c, 57 + i * 5)
        local stock = stocks[stock_no] or open_stock(stock_no)
        if not stock.left then return 'UNPUBLISHED' end
        if stock.state == 'ENDED' then return 'ENDED' end
        if stock.state ~= 'RUN' then return 'PAUSED' end
        if stock.left < quantity then return 'SOLD_OUT' end
        local held = math.floor(stock.total * (10000 - round.share_bp) / 10000)
        if stock.left - quantity < held then waits = 'L' .. pack('>d', round.opens_ms + (round.next_ms or 0)) end
    end
    return waits
end

local function take(c, parts)
    local units = 0
    for i = 0, parts - 1 do
        local stock_no, quantity = unpack_('>I4B', c, 57 + i * 5)
        local stock = stocks[stock_no]
        stock.left, stock.taken = stock.left - quantity, stock.taken + quantity
        units = units + quantity
    end
    return units
end

local function told_before(round, records, slot, body)
    local number = number_of(slot, body)
    return each_win(records, function(won, its_body, serial, after_ms)
        if number_of(won, its_body) ~= number then return nil end
        if won ~= slot then return 'IDEMPOTENCY_MISMATCH' end
        return 'R' .. pack('>I4d', serial, round.opens_ms + after_ms)
    end)
end

local function claim(c)
    local round_no, slot, way = unpack_('>I2I2B', c)
    local round = rounds[round_no] or open_round(round_no)
    if not round.known then return 'UNPUBLISHED' end

    local person_bucket = bucket_of(c, 6, 16777216)
    local who_key, who = round.who .. person_bucket % round.buckets, sub(c, 8, 13)
    local body = unpack_('>I4', c, 30)
    local records = call('HGET', who_key, who)
    local told = records and told_before(round, records, slot, body)
    if told then return told end

    local shut = window(round)
    if shut then return shut end
    local parts = byte(c, 56)
    local short = short_of(round, c, parts)
    if short and short ~= 'SOLD_OUT' and byte(short) ~= LATER then return short end

    local person, device = sub(c, 6, 13), sub(c, 14, 21)
    if device == no_device then device = '' end
    if way ~= 1 then
        local refused = gate_check(tag, round.now_ms, person, device, way == 2)
        if refused then return refused end
    end
    local over = records and over_limit(round, slot, records)
    local cap_key, face_fen = nil, 0
    if round.face_max > 0 then
        cap_key = round.cap .. person_bucket % CAP_BUCKETS
        face_fen = (tonumber(call('HGET', cap_key, who)) or 0) + unpack_('>I4', c, 52)
        if face_fen > round.face_max then over = over or 'FACE_LIMIT' end
    end
    if over or short then
        if way == 0 then gate_tried(tag, round.now_ms, person) end
        return over or short
    end
    if call('SADD', round.req .. bucket_of(c, 22, round.buckets), (unpack_('>I6', c, 24))) == 0 then
        return 'IDEMPOTENCY_MISMATCH'
    end

    local serial = round.serial + 1
    round.serial = round.serial + take(c, parts)
    call('HSET', who_key, who, (records or '') .. record_of(slot, body, serial, round.now_ms - round.opens_ms))
    if cap_key then call('HSET', cap_key, who, face_fen) end
    if way ~= 1 then gate_won(tag, round.now_ms, person, device) end
    local win = pack('>I4d', serial, round.now_ms)
    wins[#wins + 1] = win .. pack('>I2', #c) .. c
    return 'G' .. win
end

local answers = {}
for i = 1, #ARGV do
    answers[i] = claim(ARGV[i])
end

if #wins > 0 then
    for _, stock in pairs(stocks) do
        if stock.taken > 0 then call('HINCRBY', stock.key, 'left', -stock.taken) end
    end
    for _, round in pairs(rounds) do
        if round.known and round.serial > round.first_serial then
            call('HSET', round.key, 'serial', round.serial)
        end
    end
    call('XADD', tag .. ':log', '*', 'w', table.concat(wins))
end
return answers
