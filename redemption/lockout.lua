-- Counts invalid codes, and locks terminals that sent too many. Written by redemption/lockout.py.
--
--   KEYS[1]  hash tag of all keys, '{tills}': they are few, so they live on one node
--   ARGV     now_ms, window_ms, lock_ms, terminal_max, merchant_max, strict_max,
--            then for each invalid code: merchant_no, terminal_no
--            terminal_max  so many from one terminal within the window lock it
--            merchant_max  from so many of one merchant within the window on, strict_max stands for terminal_max
--
-- Answers, for each invalid code, two numbers:
--   until_ms   when the terminal's lock ends; 0: it is not locked
--   is_locked  1 when it was locked before: such a code was not judged, and is not counted
--
-- Keys (all expire by themselves, in the machine's seconds whatever the campaign's clock says)
--   {tills}:bad:<merchant>:<terminal>  list: when its last invalid codes came, ms since 1970, newest first
--   {tills}:bad:<merchant>             the same of all terminals of a merchant
--   {tills}:locked                     sorted set: '<merchant>:<terminal>' by the end of its lock
--
-- Cost: some 8 calls to the store for each invalid code, all O(1) but for lists of up to merchant_max.

local tag = KEYS[1]
local now, window, lock = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local terminal_max, merchant_max, strict_max = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local LOCKED = tag .. ':locked'

local function note(key, most)
    redis.call('LPUSH', key, ARGV[1])
    redis.call('LTRIM', key, 0, most - 1)
    redis.call('PEXPIRE', key, window)
end

local function has(key, count)
    local oldest = redis.call('LINDEX', key, count - 1)
    return oldest and now - tonumber(oldest) < window
end

local answer = {}
redis.call('ZREMRANGEBYSCORE', LOCKED, '-inf', now)
for at = 7, #ARGV, 2 do
    local merchant, terminal = ARGV[at], ARGV[at] .. ':' .. ARGV[at + 1]
    local until_ms, is_locked = tonumber(redis.call('ZSCORE', LOCKED, terminal) or 0), 1
    if until_ms == 0 then
        local of_merchant, of_terminal = tag .. ':bad:' .. merchant, tag .. ':bad:' .. terminal
        is_locked = 0
        note(of_merchant, merchant_max)
        note(of_terminal, terminal_max)
        if has(of_terminal, terminal_max) or has(of_merchant, merchant_max) and has(of_terminal, strict_max) then
            until_ms = now + lock
            redis.call('ZADD', LOCKED, until_ms, terminal)
            redis.call('PEXPIRE', LOCKED, lock)
        end
    end
    answer[#answer + 1] = until_ms
    answer[#answer + 1] = is_locked
end
return answer
