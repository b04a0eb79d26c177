"""Other programs' checkpoints, read and written. Imports nothing by itself."""
