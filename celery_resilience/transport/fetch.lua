-- Ack what is finished, then take messages from lists: each is written down where it is
-- held before its list loses it.
--
-- KEYS  1 hash of what is held   2 kombu's index of it   3 the takes of workers   4 workers, by the
--       time until which they are alive   5.. the lists, priority by priority and within each in the
--       order of the queues
-- ARGV  1 the most messages   2 the most bytes (one message may be more)
--       3 "1": the queues of a priority take turns; "0": the first is emptied first
--       4 how many queues   5 how a delivery tag begins
--       6 the time, for kombu's index; "" where a worker holds: then the list is written down too
--       7 length of the key prefix, in bytes
--       8 the worker that holds   9 the number of its last take   10 how long a lease lasts, in s
--       11.. for each queue its name as JSON, "" where nothing has to be held
--       then the delivery tags of what is acknowledged
--
-- Returns {1 if there may be more, the number of this take, list, message, list, message, ...}; the
-- n-th message has the delivery tag that ends with n. Each list is read once more when it is empty:
-- that is what CLIENT TRACKING remembers, and what the next message in any of them is told by.
local most, bytes, queues = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local found, taken = {0, 0}, 0

-- Read all lists, so that the server tells of their next message; returns how many are there. A call
-- has room for some thousand arguments.
local function read_lists()
  local there = 0
  for first = 5, #KEYS, 1000 do
    there = there + redis.call("EXISTS", unpack(KEYS, first, math.min(first + 999, #KEYS)))
  end
  return there
end

if #ARGV >= 11 + queues then
  redis.call("HDEL", KEYS[1], unpack(ARGV, 11 + queues))
  if ARGV[6] ~= "" then
    redis.call("ZREM", KEYS[2], unpack(ARGV, 11 + queues))
  end
end
if most == 0 then
  return found
end

-- How many are not empty.
local there = read_lists()
if there == 0 then
  return found
end

-- A server whose memory is full refuses a script's first write if that takes room, and no later
-- one: workers have to be able to empty it.
call("HDEL", KEYS[1], "")
if ARGV[6] == "" then
  found[2] = count_take(KEYS[3], KEYS[4], ARGV[8], ARGV[9], ARGV[10])
end

local function hold(key, message, queue)
  local tag = ARGV[5] .. taken + 1
  if ARGV[6] == "" then
    local list = string.sub(key, ARGV[7] + 1)
    call("HSET", KEYS[1], tag, list .. "\n" .. message)
  else
    call("ZADD", KEYS[2], ARGV[6], tag)
    call("HSET", KEYS[1], tag, "[" .. message .. ',"",' .. queue .. "]")
  end
end

-- From which of them something was taken.
local begun = {}

local function take(list)
  local key = KEYS[list + 4]
  local message = redis.pcall("LINDEX", key, -1)
  if type(message) ~= "string" then
    if taken == 0 and message and not string.find(message.err, "WRONGTYPE", 1, true) then
      error({err = message.err .. " (LINDEX " .. key .. ")"})
    end
    if not message and begun[list] then
      there = there - 1
    end
    return false -- it is empty, or something that is no list has its name
  end
  begun[list] = true
  local queue = ARGV[11 + (list - 1) % queues]
  if queue ~= "" then
    hold(key, message, queue)
  end
  local popped = redis.pcall("RPOP", key)
  if type(popped) == "table" then -- it stays where it is, and is not held
    redis.pcall("HDEL", KEYS[1], ARGV[5] .. taken + 1)
    if taken > 0 then
      return false
    end
    error({err = popped.err .. " (RPOP " .. key .. ")"})
  end
  taken, bytes = taken + 1, bytes - #message
  found[#found + 1] = list
  found[#found + 1] = message
  return true
end

for first = 1, #KEYS - 4, queues do
  local turns = {}
  for list = first, first + queues - 1 do
    turns[#turns + 1] = list
  end
  while #turns > 0 do
    local again = {}
    for _, list in ipairs(turns) do
      repeat
        if taken >= most or bytes <= 0 then
          found[1] = 1
          return found
        end
        local got = take(list)
        if there == 0 then
          return found
        end
        if got and ARGV[3] == "1" then
          again[#again + 1] = list
        end
      until not got or ARGV[3] == "1"
    end
    turns = again
  end
end

read_lists()
return found
