-- Move what is due from where it waits to the lists that workers read.
--
-- KEYS  1 the lists that something waits for, by the earliest due time   2 whose turn it is
-- ARGV  1 key prefix   2 the most to move   3 this worker   4 how long a turn lasts, in ms
--
-- Returns {moved, not movable, ms until the next is due (-1: nothing waits), 1 if it is our turn,
-- why those are not movable ("": all are)}.
-- Whose turn it is wakes for every due time; the others only look now and then.
-- What is removed afterwards may be. And a server whose memory is full refuses a first write that
-- takes room, and this one takes none: it is emptied by running them.
call("ZREM", KEYS[1], "")
local registered = call("ZRANGE", KEYS[1], 0, 31, "WITHSCORES")
if #registered == 0 then
  return {0, 0, -1, 0, ""}
end
local moment = now()
local due = 0
while due * 2 < #registered and tonumber(registered[due * 2 + 2]) <= moment do
  due = due + 1
end
local moved, stuck, why = 0, 0, ""
-- Each list has its share: a flood for one does not hold up the others.
local share = math.max(1, math.floor(ARGV[2] / math.max(1, due)))

-- Move what is due for *list*; returns how much.
local function move(list)
  local waiting = KEYS[1] .. ":" .. list
  call("ZREM", waiting, "")
  local items = call("ZRANGEBYSCORE", waiting, "-inf", moment, "LIMIT", 0, share)
  if #items > 0 then
    local pushed, problem = pcall(call, "LPUSH", ARGV[1] .. list, unpack(items))
    if not pushed then
      for _, item in ipairs(items) do
        call("ZADD", waiting, moment + 30, item)
      end
      stuck = stuck + #items
      why = problem.err or tostring(problem)
    else
      call("ZREM", waiting, unpack(items))
      moved = moved + #items
    end
  end
  local first = call("ZRANGE", waiting, 0, 0, "WITHSCORES")
  if #first == 0 then
    call("ZREM", KEYS[1], list)
  else
    call("ZADD", KEYS[1], first[2], list)
  end
end

for n = 0, due - 1 do
  -- A key that has another type, or that no user may touch: tried again later, the others go on.
  local list = registered[n * 2 + 1]
  local done, problem = pcall(move, list)
  if not done then
    stuck, why = stuck + 1, problem.err or tostring(problem)
    call("ZADD", KEYS[1], moment + 30, list)
  end
end
local turn = 0
local taken = redis.pcall("SET", KEYS[2], ARGV[3], "NX", "PX", ARGV[4])
if type(taken) == "table" and taken.ok then
  turn = 1
elseif redis.pcall("GET", KEYS[2]) == ARGV[3] then
  redis.pcall("PEXPIRE", KEYS[2], ARGV[4])
  turn = 1
end
local following = call("ZRANGE", KEYS[1], 0, 0, "WITHSCORES")
if #following == 0 then
  return {moved, stuck, -1, turn, why}
end
return {moved, stuck, math.max(0, math.ceil((following[2] - moment) * 1000)), turn, why}
