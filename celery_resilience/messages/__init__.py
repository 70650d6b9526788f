"""What travels with a message and what is kept of it: headers, history, context, dead letters.

Values that are shown are masked here, and letters are filtered here, because the worker and every
command need that. Nothing in this package talks to a broker or moves a message.
"""
