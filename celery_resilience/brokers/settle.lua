-- Move a message that a worker holds: write the copy, then let the original go.
--
-- KEYS  1 hash of what is held   2 unacked index (kombu's)   3 destination list
-- ARGV  1 delivery tag           2 copy                      3 "1": the original is already let go
--
-- Returns 1, or 0 if the original is no longer ours: then nothing was written.
if ARGV[3] ~= "1" and redis.call("HEXISTS", KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call("LPUSH", KEYS[3], ARGV[2])
redis.call("ZREM", KEYS[2], ARGV[1])
redis.call("HDEL", KEYS[1], ARGV[1])
return 1
