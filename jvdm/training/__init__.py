"""Training: the optimizer, the gradients, the one train step and the one loop.

A run is resumed bitwise from its newest checkpoint.
"""
