-- Take a message from where it waits: write the copy, then remove the original. Or let it wait.
--
-- KEYS  1 what waits for the list   2 the lists that something waits for   3 destination list
-- ARGV  1 the original   2 copy   3 the list it waits for
--       4 "": to the destination; else the time that the original is due from now on
--
-- Returns 1, or 0 if the original no longer waits: then nothing was written.
if redis.call("ZSCORE", KEYS[1], ARGV[1]) == false then
  return 0
end
-- A server whose memory is full refuses a first write that takes room, and this one takes none.
redis.call("ZREM", KEYS[1], "")
if ARGV[4] == "" then
  redis.call("LPUSH", KEYS[3], ARGV[2])
  redis.call("ZREM", KEYS[1], ARGV[1])
else
  redis.call("ZADD", KEYS[1], ARGV[4], ARGV[1])
end
local first = redis.call("ZRANGE", KEYS[1], 0, 0, "WITHSCORES")
if #first == 0 then
  redis.call("ZREM", KEYS[2], ARGV[3])
else
  redis.call("ZADD", KEYS[2], first[2], ARGV[3])
end
return 1
