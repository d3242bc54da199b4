"""Metrics, pictures and plots of a run, and its report.

Nothing here computes a result: it draws the contents of records and metrics.
"""
