"""What each library's exceptions deserve: one table a file.

A table names classes as text, so that no library is imported for it. Rules that hold for every
library (statuses, names, wrappers) do not belong here.
"""
