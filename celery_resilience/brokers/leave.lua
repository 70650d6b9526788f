-- Forget a worker that holds nothing any more.
--
-- KEYS  1 workers   2 hash of what it held
-- ARGV  1 the worker   2 "1": only if its time is over
--
-- Returns 1, or 0 if it still holds something or is alive.
if redis.call("EXISTS", KEYS[2]) == 1 then
  return 0
end
if ARGV[2] == "1" then
  local time = redis.call("TIME")
  local until_ = redis.call("ZSCORE", KEYS[1], ARGV[1])
  if until_ and tonumber(until_) > time[1] + time[2] / 1e6 then
    return 0
  end
end
redis.call("ZREM", KEYS[1], ARGV[1])
return 1
