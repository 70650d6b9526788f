-- Move a message that lies in a list: write the copy, then remove the original.
--
-- KEYS  1 list it lies in   2 destination list   3 a key that there never is
-- ARGV  1 the original      2 copy
--
-- Returns 1, or 0 if the original is no longer there: then nothing was written.
-- RANK -1: from the oldest message on, where those that are replayed lie.
if call("LPOS", KEYS[1], ARGV[1], "RANK", -1) == false then
  return 0
end
-- It may be removed: a list that is there would be searched, all of it. And a server whose memory is
-- full refuses a first write that takes room, and this one takes none.
may("LREM", KEYS[1], -1, ARGV[1])
call("LREM", KEYS[3], -1, "")
call("LPUSH", KEYS[2], ARGV[2])
call("LREM", KEYS[1], -1, ARGV[1])
return 1
