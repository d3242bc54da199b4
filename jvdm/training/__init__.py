"""The train state, the one train step, the loop and the checkpoints."""
