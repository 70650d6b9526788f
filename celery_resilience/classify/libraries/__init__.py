"""What each library's exceptions deserve: one table to a file.

A table names classes as text, so that no library is imported for it. Rules that hold for every
library (statuses, names, wrappers) lie one package higher.
"""
