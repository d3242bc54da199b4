"""How programs are compiled in tests: they run for milliseconds and compile for seconds.

The backend's optimisation is off, and fusions are compiled one by one as before XLA's fusion emitters, which
takes half the time. An option that a later XLA no longer knows would end the process, so it is asked for
where it is known to be.
"""

import importlib.metadata

_VERSION = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
FLAGS = "--xla_backend_optimization_level=0"
if _VERSION <= (0, 10):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
