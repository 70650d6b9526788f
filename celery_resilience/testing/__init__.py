"""What tests and demos need: an embedded Valkey or Redis on a private socket.

It is a real server in a process of its own, and ends with the process that started it. Nothing in
this package runs in production.
"""
