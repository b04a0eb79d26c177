"""Records, mixing, packing and conversion: task rows to batches. Imports nothing by itself."""
