"""Comparison of cascades from tables of predictions."""
