"""What is done to messages in a broker: one Protocol (``base``), three implementations.

Each move puts the copy where it belongs, then lets the original go. Nothing here knows a policy
or an app's settings.
"""
