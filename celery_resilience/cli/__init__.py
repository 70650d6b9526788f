"""What an operator types: ``celery dlq``, ``celery retries``, ``celery resilience`` and more.

Commands are thin: they read options, call ``operate`` and render what it returns. No message is
touched here, and nothing here is imported by the worker.
"""
