"""What an operator does, from Python: look at dead letters and scheduled retries, and change them.

The commands stand on it. It never imports the worker, nor the worker it.
"""
