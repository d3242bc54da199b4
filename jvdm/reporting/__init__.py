"""What a run shows: metrics, pictures, plots, and the report.

Nothing here computes a result: it draws what records and metrics hold.
"""
