-- Say that a worker is alive, and hear which others are not.
--
-- KEYS  1 workers, by the time until which they count as alive
-- ARGV  1 this worker   2 for how long, in seconds
--
-- Returns {how many workers there are, 1 if half of our own time was over, those whose time is over
-- ...}. Half, for what kept us from saying so kept others too, and theirs may have begun earlier.
local moment = now()
-- A server whose memory is full refuses a first write that takes room, and this one takes none: who
-- lives on has to be able to say so.
call("ZREM", KEYS[1], "")
local before = call("ZSCORE", KEYS[1], ARGV[1])
call("ZADD", KEYS[1], string.format("%.3f", moment + ARGV[2]), ARGV[1])
local dead = call("ZRANGEBYSCORE", KEYS[1], "-inf", moment, "LIMIT", 0, 100)
table.insert(dead, 1, call("ZCARD", KEYS[1]))
table.insert(dead, 2, before and before - moment < ARGV[2] / 2 and 1 or 0)
return dead
