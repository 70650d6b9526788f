-- Record about a message that a worker holds what is needed if it crashes the worker.
--
-- KEYS  1 hash of what is held   2 the takes
-- ARGV  1 delivery tag   2 the list it came from, a line end, and the message as it is to be now
--       3 the worker     4 the number of its take
--
-- Returns what `whose` says; 0: then nothing was written.
local is = whose(KEYS[1], ARGV[1], KEYS[2], ARGV[3], ARGV[4])
if is == 0 then
  return 0
end
-- A server whose memory is full refuses a first write that takes room, and this one takes none.
call("HDEL", KEYS[1], "")
call("HSET", KEYS[1], ARGV[1], ARGV[2])
return is
