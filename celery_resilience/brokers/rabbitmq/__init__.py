"""RabbitMQ: a copy is published, its confirm awaited, then the original is acknowledged.

Scheduled retries wait in delay queues. What is private in py-amqp is touched in ``pyamqp``, and
nowhere else.
"""
