-- The gate: layer A of anti-fraud. Not a script of its own but a fragment that is put before the
-- claim script when it is loaded, so that judging and granting are one atomic step.
--
-- Defines three functions and nothing else:
--   gate_check(tag, now_ms, person, device, is_paid)  nil when the claim may go on, else one of
--       'REQUEST_BLOCKED'    the worker has blocked this person, and the penalty has not expired
--       'DEVICE_LIMIT'       as many people as make a household have already won on this device
--       'FREQUENCY_LIMITED'  the person's token bucket is empty; not looked at for a try that is_paid: one that was
--                            asked a moment ago, and is asked again by us and not by the person
--     Call it after replays are answered (a replay must never be refused) and before stock is touched.
--   gate_tried(tag, now_ms, person)          takes a token; call once for each claim that passed and brought nothing.
--     What was granted takes none: wins are bounded by the round's limits, and pace is for those who ask in vain.
--   gate_won(tag, now_ms, person, device)    call once for each claim that was granted.
--
--   tag     hash tag of the shard, braces included: '{s0}'
--   now_ms  the store's time plus the clock's offset, milliseconds since 1970, a number
--   person  8 bytes, digest of the person's token
--   device  8 bytes, digest of the device's token, or '' when the partner sends none
--
-- Keys (all contain the tag, so that one slot holds them; each is a small listpack hash)
--   af:risk:{s0}:<bucket>          person -> verdict code, or code@until_ms; written by the worker
--   af:risk:{s0}:any               there once anybody has a verdict; without it nobody is looked up
--   af:pace:{s0}:<epoch>:<bucket>  person -> when the bucket is full again, in ticks after the epoch began;
--                                  expires by itself, so that memory follows the last minutes, not the season
--   af:device:{s0}:<bucket>        device -> first 4 bytes of each person who won on it, joined
--
-- Cost, all O(1): gate_check is 1 call to the store for whom this epoch knows (2 in the first seconds of an epoch), one
-- more where anybody has a verdict, and one more with a device; gate_tried is 1 (2 for a person's first in an epoch);
-- gate_won is 0 without a device, 1 for one that knows the person, else 3. On one core of 2020s make: 5 to 7 us of store time a check, 9 with a
-- device and a win; 23 B a person and minute (tests/integration/test_gate.py prints and bounds them).
--
-- There is no IP address here, on purpose: a campus or an office shares one.

local gate_check, gate_tried, gate_won
do
    local call, byte, floor = redis.call, string.byte, math.floor
    -- Filled by gate.py from GateLimits, name by name; the figures here are its defaults.
    local LIMITS = {
        pace_burst = 5,               -- tries a rested person has at once
        pace_refill_ms = 2000,        -- one more each
        pace_epoch_s = 60,            -- one generation of keys
        pace_buckets = 32768,
        device_household = 4,         -- people who may win on one device
        device_ttl_s = 10368000,      -- 120 days after the last win: the campaign and its appeals
        device_buckets = 131072,
        risk_buckets = 4096,
    }
    local TICK_MS = 20                -- coarse on purpose: a number under 4,096 takes 3 bytes in a listpack
    local PREFIX = 4
    local BLOCK = 'B'                 -- other codes are for later layers and let the claim pass

    local epoch_ms = LIMITS.pace_epoch_s * 1000
    local refill_ms = LIMITS.pace_refill_ms
    local slack_ms = (LIMITS.pace_burst - 1) * refill_ms
    local full_ms = LIMITS.pace_burst * refill_ms

    -- Digests are uniform, so three of their bytes deal them out evenly.
    local function bucket_of(digest, buckets)
        local b1, b2, b3 = byte(digest, 6, 8)
        return (b1 * 65536 + b2 * 256 + b3) % buckets
    end

    local has_verdicts = {}  -- by tag; asked once a call

    local function is_blocked(tag, now_ms, person)
        if has_verdicts[tag] == nil then
            has_verdicts[tag] = call('EXISTS', 'af:risk:' .. tag .. ':any') == 1
        end
        if not has_verdicts[tag] then
            return false
        end
        local key = 'af:risk:' .. tag .. ':' .. bucket_of(person, LIMITS.risk_buckets)
        local verdict = call('HGET', key, person)
        if not verdict then
            return false
        end
        local until_ms = tonumber(string.sub(verdict, 3))
        if until_ms and until_ms <= now_ms then
            call('HDEL', key, person)
            return false
        end
        return string.sub(verdict, 1, 1) == BLOCK
    end

    local function knows(people, person)
        local mine = string.sub(person, 1, PREFIX)
        for at = 1, #people, PREFIX do
            if string.sub(people, at, at + PREFIX - 1) == mine then
                return true
            end
        end
        return false
    end

    local function device_key(tag, device)
        return 'af:device:' .. tag .. ':' .. bucket_of(device, LIMITS.device_buckets)
    end

    local function is_crowded(tag, person, device)
        if device == '' then
            return false
        end
        local people = call('HGET', device_key(tag, device), device)
        return people and #people >= LIMITS.device_household * PREFIX and not knows(people, person)
    end

    -- When the person's bucket will be full again, ms since 1970; 0 when nothing is known.
    local function full_again_ms(key, person, epoch)
        local ticks = call('HGET', key, person)
        return ticks and epoch * epoch_ms + ticks * TICK_MS or 0
    end

    local prefixes = {}  -- by epoch; one call has one tag, and two epochs at most

    local function pace_prefix(tag, epoch)
        local prefix = prefixes[epoch]
        if not prefix then
            prefix = 'af:pace:' .. tag .. ':' .. epoch .. ':'
            prefixes[epoch] = prefix
        end
        return prefix
    end

    -- GCRA: a token bucket in one number, the time at which it will be full again. That time lies at most
    -- full_ms ahead, so the epoch before matters only in the first full_ms of this one; a time further
    -- ahead was written before the clock was set back, and counts as nothing.
    local function look(tag, now_ms, person)
        local epoch = floor(now_ms / epoch_ms)
        local bucket = bucket_of(person, LIMITS.pace_buckets)
        local key = pace_prefix(tag, epoch) .. bucket
        local full_at = full_again_ms(key, person, epoch)
        if full_at == 0 and now_ms - epoch * epoch_ms < full_ms then
            full_at = full_again_ms(pace_prefix(tag, epoch - 1) .. bucket, person, epoch - 1)
        end
        if full_at < now_ms or full_at > now_ms + full_ms + TICK_MS then
            full_at = now_ms
        end
        return full_at, key, epoch
    end

    gate_check = function(tag, now_ms, person, device, is_paid)
        if is_blocked(tag, now_ms, person) then
            return 'REQUEST_BLOCKED'
        end
        if is_crowded(tag, person, device) then
            return 'DEVICE_LIMIT'
        end
        if not is_paid and look(tag, now_ms, person) - now_ms > slack_ms then
            return 'FREQUENCY_LIMITED'
        end
        return nil
    end

    gate_tried = function(tag, now_ms, person)
        local full_at, key, epoch = look(tag, now_ms, person)
        local ticks = floor((full_at + refill_ms - epoch * epoch_ms) / TICK_MS)
        if call('HSET', key, person, ticks) == 1 then
            -- The machine's seconds, whatever the campaign's clock says: a replay must not pile up keys.
            call('EXPIRE', key, 2 * LIMITS.pace_epoch_s + 1, 'NX')
        end
    end

    gate_won = function(tag, now_ms, person, device)
        if device == '' then
            return
        end
        local key = device_key(tag, device)
        local people = call('HGET', key, device) or ''
        if knows(people, person) or #people >= LIMITS.device_household * PREFIX then
            return
        end
        call('HSET', key, device, people .. string.sub(person, 1, PREFIX))
        call('EXPIRE', key, LIMITS.device_ttl_s)
    end
end
