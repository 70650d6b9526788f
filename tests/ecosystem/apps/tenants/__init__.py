"""A Django app with one schema for each customer."""
