"""Failure in, decision out: which attempts are repeated, when, and which are given up.

All of it is pure, with the standard library alone: no broker, no Celery, no clock of its own. What
a decision causes does not belong here: ``task`` asks for it, and ``worker`` carries it out.
"""
