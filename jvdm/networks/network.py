"""The registry of networks, (z [b, h, w, c], time [b], conditioning [b], train) -> output [b, h, w, c]."""

from jvdm.core.registry import Registry

NETWORKS = Registry("network")
