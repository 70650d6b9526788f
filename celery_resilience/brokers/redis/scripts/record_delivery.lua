-- Write down what a worker holds: it has left its list already, and would be nowhere.
--
-- KEYS  1 hash of what is held   2 the takes   3 workers, by the time until which they are alive
-- ARGV  1 delivery tag           2 the list it came from, a line end, and the message
--       3 the worker             4 the number of its last take   5 how long a lease lasts, in s
--
-- Returns the number of this take.
-- A full server refuses a script's first write if that takes room, and no later one.
call("HDEL", KEYS[1], "")
call("HSET", KEYS[1], ARGV[1], ARGV[2])
return count_take(KEYS[2], KEYS[3], ARGV[3], ARGV[4], ARGV[5])
