-- Give back a message that a worker holds: put it where it is read next, then let it go.
--
-- KEYS  1 hash of what is held   2 destination list
-- ARGV  1 delivery tag           2 the message, with a tag of its own
--
-- Returns 1, or 0 if it is not held any more: then nothing was written.
if redis.call("HEXISTS", KEYS[1], ARGV[1]) == 0 then
  return 0
end
-- A server whose memory is full refuses a first write that takes room, and this one takes none.
redis.call("HDEL", KEYS[1], "")
redis.call("RPUSH", KEYS[2], ARGV[2])
redis.call("HDEL", KEYS[1], ARGV[1])
return 1
