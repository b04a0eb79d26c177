"""Sweeps: ml_collections configs for `launch.sweep`."""
