-- Forget a worker that holds nothing any more.
--
-- KEYS  1 workers   2 hash of what it held   3 the takes   4 those taken for dead, by that time
-- ARGV  1 the worker   2 "1": only if its time is over
--       3 how long to remember the takes of who was taken for dead, in seconds
--
-- Returns 1, or 0 if it still holds something or is alive.
if call("EXISTS", KEYS[2]) == 1 then
  return 0
end
if ARGV[2] ~= "1" then
  call("ZREM", KEYS[1], ARGV[1])
  call("HDEL", KEYS[3], ARGV[1])
  call("ZREM", KEYS[4], ARGV[1])
  return 1
end
local moment = now()
local until_ = call("ZSCORE", KEYS[1], ARGV[1])
if until_ and tonumber(until_) > moment then
  return 0
end
-- It may only have been stopped. What it held was requeued, and it must not think that the server
-- has forgotten it; but it has to say again that it is alive, with its next take.
call("ZREM", KEYS[1], "")
local takes = tonumber(call("HGET", KEYS[3], ARGV[1]) or 0)
if takes > 0 then
  call("ZADD", KEYS[4], moment, ARGV[1])
  call("HSET", KEYS[3], ARGV[1], string.format("%.0f", -takes))
end
call("ZREM", KEYS[1], ARGV[1])
for _, worker in ipairs(call("ZRANGEBYSCORE", KEYS[4], "-inf", moment - ARGV[3])) do
  if not call("ZSCORE", KEYS[1], worker) then
    call("HDEL", KEYS[3], worker)
  end
  call("ZREM", KEYS[4], worker)
end
return 1
