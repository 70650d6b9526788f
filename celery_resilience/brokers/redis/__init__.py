"""Redis and Valkey: every move is one script, and what a worker holds is under its lease.

The scripts lie in ``scripts/``. What a worker decides does not belong here.
"""
