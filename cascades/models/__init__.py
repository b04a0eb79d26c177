"""Language models in flax.nnx: T5 and decoder-only. Imports nothing by itself."""
