-- Move what is due from where it waits to the lists that workers read.
--
-- KEYS  1 the lists that something waits for, by the earliest due time   2 whose turn it is
-- ARGV  1 key prefix   2 the most to move   3 this worker   4 how long a turn lasts, in ms
--
-- Returns {moved, not movable, ms until the next is due (-1: nothing waits), 1 if it is our turn}.
-- Whose turn it is wakes for every due time; the others only look now and then.
-- A server whose memory is full refuses a first write that takes room, and this one takes none: it
-- is emptied by running what waits.
redis.call("ZREM", KEYS[1], "")
local registered = redis.call("ZRANGE", KEYS[1], 0, 31, "WITHSCORES")
if #registered == 0 then
  return {0, 0, -1, 0}
end
local time = redis.call("TIME")
local now = time[1] + time[2] / 1e6
local due = 0
while due * 2 < #registered and tonumber(registered[due * 2 + 2]) <= now do
  due = due + 1
end
local moved, stuck = 0, 0
-- Each list has its share: a flood for one does not hold up the others.
local share = math.max(1, math.floor(ARGV[2] / math.max(1, due)))
for n = 0, due - 1 do
  local list = registered[n * 2 + 1]
  local waiting = KEYS[1] .. ":" .. list
  local items = redis.call("ZRANGEBYSCORE", waiting, "-inf", now, "LIMIT", 0, share)
  if #items > 0 then
    local pushed = redis.pcall("LPUSH", ARGV[1] .. list, unpack(items))
    if type(pushed) == "table" and pushed.err then
      -- Something that is no list has this name: tried again later, and in nobody's way.
      for _, item in ipairs(items) do
        redis.call("ZADD", waiting, now + 30, item)
      end
      stuck = stuck + #items
    else
      redis.call("ZREM", waiting, unpack(items))
      moved = moved + #items
    end
  end
  local first = redis.call("ZRANGE", waiting, 0, 0, "WITHSCORES")
  if #first == 0 then
    redis.call("ZREM", KEYS[1], list)
  else
    redis.call("ZADD", KEYS[1], first[2], list)
  end
end
local turn = 0
if redis.call("SET", KEYS[2], ARGV[3], "NX", "PX", ARGV[4]) then
  turn = 1
elseif redis.call("GET", KEYS[2]) == ARGV[3] then
  redis.call("PEXPIRE", KEYS[2], ARGV[4])
  turn = 1
end
local following = redis.call("ZRANGE", KEYS[1], 0, 0, "WITHSCORES")
if #following == 0 then
  return {moved, stuck, -1, turn}
end
return {moved, stuck, math.max(0, math.ceil((following[2] - now) * 1000)), turn}
