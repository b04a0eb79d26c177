"""Text to token ids and back. Imports nothing by itself."""
