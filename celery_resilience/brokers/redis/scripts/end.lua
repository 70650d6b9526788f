end

local ended, answer = pcall(script)
if ended or type(answer) == "table" then
  return answer
end
return redis.error_reply("ERR " .. tostring(answer))
