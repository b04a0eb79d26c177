"""Tasks: rows of text, vocabularies, token records and batches. Imports nothing by itself."""
