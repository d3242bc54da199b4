"""Evaluation: one pass over a split, and results with their provenance."""
