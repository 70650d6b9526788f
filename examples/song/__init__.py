"""Lyrics -> song -> video."""
