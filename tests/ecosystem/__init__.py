"""Packages that teams use beside Celery: one small real scenario each, with a real worker.

``make ecosystem`` installs them all. A package that is not there is skipped, but those of the
development group are a must under CI.
"""
