"""Checkpoints: Orbax under our layout, and importers. Imports nothing by itself."""
