"""Tables of predictions: their rows, their shards on disk, their alignment."""
