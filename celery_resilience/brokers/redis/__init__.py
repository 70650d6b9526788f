"""Redis and Valkey: every move of a message is one script, and runs as a whole or not at all.

What a worker holds is under its lease. The scripts lie in ``scripts``, one to a file; what a worker
decides does not belong here.
"""
