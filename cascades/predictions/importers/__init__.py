"""Answers in the formats of other systems, one module a format."""
