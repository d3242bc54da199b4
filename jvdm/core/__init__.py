"""What all other packages build on; nothing here knows about diffusion.

Errors, the registry, random keys, records, trees, meshes, processes, files, progress. Its modules are
imported by name, so that a mistake in a flag is reported without importing JAX.
"""
