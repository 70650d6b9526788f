"""Where the message is: the worker's main process carries out what was decided.

Every message that a worker has received is settled here: scheduled again, dead-lettered or
acknowledged. What an operator asks for does not belong here, and no body runs here.
"""
