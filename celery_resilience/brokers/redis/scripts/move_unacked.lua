-- Move a message that a worker holds: write the copy, then ack the original.
--
-- KEYS  1 hash of what is held   2 unacked index (kombu's)   3 destination list   4 the takes
--       5 says that it was written, where nothing is acknowledged
-- ARGV  1 delivery tag           2 copy   3 "1": there is no original to ack
--       4 the worker             5 the number of its take
--
-- Returns what `whose` says; 0: then nothing was written.
local is = 1
if ARGV[3] ~= "1" then
  is = whose(KEYS[1], ARGV[1], KEYS[4], ARGV[4], ARGV[5])
end
if is == 0 then
  return 0
end
if ARGV[3] == "1" or is == 2 then
  once(KEYS[5], function()
    call("LPUSH", KEYS[3], ARGV[2])
  end)
  return is
end
-- It may be deleted. And a server whose memory is full refuses a first write that takes room, and
-- this one takes none: a copy only takes the place of its original.
call("HDEL", KEYS[1], "")
call("LPUSH", KEYS[3], ARGV[2])
call("HDEL", KEYS[1], ARGV[1])
redis.pcall("ZREM", KEYS[2], ARGV[1])
return is
