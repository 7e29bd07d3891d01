"""Formats at the border of the project: read, write, validate."""
