-- Write down what a worker holds, though the server's memory is full.
--
-- KEYS  1 hash of what is held
-- ARGV  1 delivery tag           2 the list it came from, a line end, and the message
--
-- A full server refuses a script's first write if that takes room, and no later one.
redis.call("HDEL", KEYS[1], "")
redis.call("HSET", KEYS[1], ARGV[1], ARGV[2])
