-- Requeue a message that a worker holds: put it where it is read next, then ack it.
--
-- KEYS  1 hash of what is held   2 destination list   3 the takes
-- ARGV  1 delivery tag           2 the message, with a tag of its own
--       3 the worker, and        4 the number of its take: also if the server has forgotten it
--
-- Returns what `whose` says; 0: then nothing was written.
local is = whose(KEYS[1], ARGV[1], KEYS[3], ARGV[3], ARGV[4])
if is == 0 then
  return 0
end
-- It may be deleted. And a server whose memory is full refuses a first write that takes room, and
-- this one takes none.
call("HDEL", KEYS[1], "")
call("RPUSH", KEYS[2], ARGV[2])
call("HDEL", KEYS[1], ARGV[1])
return is
