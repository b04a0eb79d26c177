"""Language models in flax.nnx, T5 and decoder-only, and BERT encoders."""
