"""What is done to messages in a broker: one Protocol (``base``), three implementations.

Each of them writes the copy first and acknowledges the original after that, so that a message may
be doubled and is never lost. Neither a policy nor the app's settings are known here: what a broker
needs of them is handed in as ``BrokerOptions``.
"""
