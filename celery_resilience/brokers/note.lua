-- Write down about a message that a worker holds what is to be known if the worker dies of it.
--
-- KEYS  1 hash of what is held
-- ARGV  1 delivery tag   2 the list it came from, a line end, and the message as it is to be now
--
-- Returns 1, or 0 if it is no longer ours: then nothing was written.
if redis.call("HEXISTS", KEYS[1], ARGV[1]) == 0 then
  return 0
end
-- A server whose memory is full refuses a first write that takes room, and this one takes none.
redis.call("HDEL", KEYS[1], "")
redis.call("HSET", KEYS[1], ARGV[1], ARGV[2])
return 1
