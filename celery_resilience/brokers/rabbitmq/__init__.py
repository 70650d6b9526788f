"""RabbitMQ: the copy is published, its confirm awaited, then the original acknowledged.

Scheduled retries wait in delay queues of their own. What touches py-amqp's insides is in
``pyamqp``, and nowhere else.
"""
