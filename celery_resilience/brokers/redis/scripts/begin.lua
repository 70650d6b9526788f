-- What begins every script: calls that say which key and command they failed at, and the answer to
-- whose a message is.

local function call(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) == "table" and answer.err then
    error({err = answer.err .. " (" .. command .. " " .. key .. ")"})
  end
  return answer
end

-- Raises if this user may not do it; servers before 7.0 can't tell before it is tried.
local function may(command, key, ...)
  if redis.acl_check_cmd and not redis.acl_check_cmd(command, key, ...) then
    error({err = "NOPERM this user has no permission for it (" .. command .. " " .. key .. ")"})
  end
end

local function now()
  local time = redis.call("TIME")
  return time[1] + time[2] / 1e6
end

-- Each take of a worker has a number, one higher than its last. In the hash of takes it is below 0
-- when others have taken the worker for dead. A number of this size or its multiple begins again
-- after the server has forgotten some.
local EPOCH = 2 ^ 40

local function count(takes, workers, worker, last, lease)
  local number = call("HINCRBY", takes, worker, 1)
  if number > last and number > 1 then
    return number
  end
  local before = math.abs(number - 1)
  number = before + 1
  if before < last then
    number = (math.floor(last / EPOCH) + 1) * EPOCH + 1
  end
  call("HSET", takes, worker, string.format("%.0f", number))
  call("ZADD", workers, "NX", string.format("%.3f", now() + lease), worker)
  return number
end

-- Count a take of *worker*, whose *last* one had that number; returns the number of this one, 0 if
-- that may not be written: what is taken is more than its number. A worker that the server does not
-- know, or no more, is also said to be alive for *lease* seconds.
local function count_take(takes, workers, worker, last, lease)
  local counted, number = pcall(count, takes, workers, worker, tonumber(last), lease)
  return counted and number or 0
end

-- Whose a message is: 1 *worker* holds it, 2 the server has forgotten that it did, 0 it was put
-- back meanwhile. *number* is that of its take; "" or 0: there is none, so it is unknown.
local function whose(held, tag, takes, worker, number)
  if call("HEXISTS", held, tag) == 1 then
    return 1
  end
  number = tonumber(number) or 0
  if number == 0 then
    return 0
  end
  local known = math.abs(tonumber(call("HGET", takes, worker) or 0))
  if known < number or math.floor(known / EPOCH) ~= math.floor(number / EPOCH) then
    return 2
  end
  return 0
end

-- Write by *write* once, though the answer may be lost and it is said again: what is held is acked
-- in the same step, but of what is not, only *mark* tells that it was written, for some minutes.
local function once(mark, write)
  if call("EXISTS", mark) == 0 then
    write()
    redis.pcall("SET", mark, "1", "EX", 300)
  end
end

local function script()
