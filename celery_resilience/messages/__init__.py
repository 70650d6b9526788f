"""What travels with a message, and what is kept of one: headers, history, context, dead letters.

Nothing here moves a message or knows a broker. What is shown of one is masked and filtered here,
for every command and worker needs that.
"""
