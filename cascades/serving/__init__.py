"""A cascade behind an OpenAI-compatible door."""
