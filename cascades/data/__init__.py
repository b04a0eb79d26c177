"""From task rows to batches: records, mixing, packing, converters. Imports nothing by itself."""
