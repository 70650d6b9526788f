"""Failure in, decision out: which attempts are made again, when, and which are given up.

All of it is pure: no broker, no clock, no Celery, the standard library alone. What a decision
causes does not belong here.
"""
