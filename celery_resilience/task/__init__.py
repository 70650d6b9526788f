"""Where the body of a task runs: its end is decided about here, and Celery is told.

This is what runs in the worker's child process, and in a process that sends tasks. No message is
moved here, and nothing of the worker is imported: it is named where Celery wants it.
"""
