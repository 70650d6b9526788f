"""A real server for tests and demos: embedded Valkey or Redis on a private socket.

Nothing here runs in production.
"""
