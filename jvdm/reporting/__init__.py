"""What a run shows: metrics, progress, pictures, plots and tables."""
