"""Where the body of a task runs: what its end deserves is decided here, and told to Celery.

It runs in the worker's child process. No message is moved here, and nothing of the worker
is imported.
"""
