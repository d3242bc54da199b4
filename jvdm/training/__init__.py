"""Training: the optimizer, the gradients, the one train step and the one loop."""
