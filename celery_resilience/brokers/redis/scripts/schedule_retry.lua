-- Schedule a message: write its copy with the time that it is due, then ack the original.
--
-- KEYS  1 hash of what is held   2 unacked index (kombu's)   3 the scheduled retries of the list
--       4 the lists that something waits for, by the earliest due time   5 the takes
--       6 says that it was written, where nothing is acknowledged
-- ARGV  1 delivery tag           2 copy   3 "1": there is no original to ack
--       4 delay in seconds       5 the list   6 the worker   7 the number of its take
--
-- Returns what `whose` says; 0: then nothing was written.
local due = string.format("%.6f", now() + ARGV[4])

local function wait()
  -- First, for a list that nothing waits for is taken off again by the worker that moves due retries.
  call("ZADD", KEYS[4], "LT", due, ARGV[5])
  call("ZADD", KEYS[3], due, ARGV[2])
end

local is = 1
if ARGV[3] ~= "1" then
  is = whose(KEYS[1], ARGV[1], KEYS[5], ARGV[6], ARGV[7])
end
if is == 0 then
  return 0
end
if ARGV[3] == "1" or is == 2 then
  once(KEYS[6], wait)
  return is
end
-- It may be deleted. And a server whose memory is full refuses a first write that takes room, and
-- this one takes none: a copy only takes the place of its original.
call("HDEL", KEYS[1], "")
wait()
call("HDEL", KEYS[1], ARGV[1])
redis.pcall("ZREM", KEYS[2], ARGV[1])
return is
