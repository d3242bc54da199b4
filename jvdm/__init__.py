"""jvdm: diffusion models judged by their likelihood, in JAX and Flax."""

__version__ = "0.1.0"
