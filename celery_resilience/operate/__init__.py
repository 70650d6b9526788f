"""What an operator does, from Python: inspect, replay and drop dead letters and scheduled retries.

The commands stand on it, and so can a user's own scripts. It never imports the worker, nor the
worker it: what both need lies further down.
"""
