-- Take a message from where it waits: write the copy, then remove the original. Or let it wait, or
-- only remove it.
--
-- KEYS  1 the scheduled retries of the list   2 the lists that something waits for   3 destination list
-- ARGV  1 the original   2 copy     3 the list it waits for
--       4 "": to the destination; "-": nowhere; else the time that the original is due from now on
--
-- Returns 1, or 0 if the original no longer waits: then nothing was written.
if call("ZSCORE", KEYS[1], ARGV[1]) == false then
  return 0
end
-- Both may be changed. And a server whose memory is full refuses a first write that takes room, and
-- this one takes none.
call("ZREM", KEYS[1], "")
call("ZREM", KEYS[2], "")
local function register()
  local first = call("ZRANGE", KEYS[1], 0, 0, "WITHSCORES")
  if #first == 0 then
    call("ZREM", KEYS[2], ARGV[3])
  else
    call("ZADD", KEYS[2], first[2], ARGV[3])
  end
end

if ARGV[4] == "" or ARGV[4] == "-" then
  if ARGV[4] == "" then
    call("LPUSH", KEYS[3], ARGV[2])
  end
  call("ZREM", KEYS[1], ARGV[1])
  pcall(register) -- what stands there comes too early: no harm
else
  call("ZADD", KEYS[1], ARGV[4], ARGV[1])
  register()
end
return 1
