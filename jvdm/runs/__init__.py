"""The folder of a run: what lies where, its checkpoints, and the trained model they give.

Checkpoints are written, found, verified and read here, for training and for evaluation.
"""
