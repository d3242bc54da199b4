"""The folder of a run: its layout, its config, its checkpoints, and the trained model that they give.

Checkpoints are written, found, verified and read here, for training and for evaluation.
"""
