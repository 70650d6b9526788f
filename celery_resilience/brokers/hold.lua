-- Let a message wait: write its copy with the time that it is due, then let the original go.
--
-- KEYS  1 hash of what is held   2 unacked index (kombu's)   3 what waits for the list
--       4 the lists that something waits for, by the earliest due time
-- ARGV  1 delivery tag           2 copy                      3 "1": the original is already let go
--       4 delay in seconds       5 the list
--
-- Returns 1, or 0 if the original is no longer ours: then nothing was written.
if ARGV[3] ~= "1" and redis.call("HEXISTS", KEYS[1], ARGV[1]) == 0 then
  return 0
end
if ARGV[3] ~= "1" then
  -- A server whose memory is full refuses a first write that takes room, and this one takes none: a
  -- copy only takes the place of its original, and workers have to be able to go on.
  redis.call("HDEL", KEYS[1], "")
end
local time = redis.call("TIME")
local due = string.format("%.6f", time[1] + time[2] / 1e6 + ARGV[4])
redis.call("ZADD", KEYS[3], due, ARGV[2])
redis.call("ZADD", KEYS[4], "LT", due, ARGV[5])
redis.call("ZREM", KEYS[2], ARGV[1])
redis.call("HDEL", KEYS[1], ARGV[1])
return 1
