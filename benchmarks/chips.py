"""Accelerators that programs are compiled for without having one: what XLA must know, and datasheet figures.

Peaks are of dense products, per second and chip, from the makers' pages:

    A100, H100, H200    nvidia.com/en-us/data-center, SXM, without sparsity; float32 is TF32 on tensor cores
                        at default precision, and on float32 units at the highest
    RTX 4090            NVIDIA Ada GPU architecture whitepaper 2.1, with float32 accumulation
    v4, v5e, v5p, v6e   cloud.google.com/tpu/docs/system-architecture; a float32 product is one bfloat16
                        product at default precision, and six of them at the highest
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator.

    Attributes:
        platform: "cuda" or "tpu".
        name: the datasheet's.
        memory: bytes.
        bandwidth: bytes per second.
        peak: FLOP per second, of a trunk in "bfloat16" or "float32" at JAX's default precision, and of
            float32 at the "highest", in which evaluation runs.
        description: XLA's GpuTargetConfigProto, as text; "" for TPUs, which libtpu knows by name.
    """

    platform: str
    name: str
    memory: float
    bandwidth: float
    peak: dict[str, float]
    description: str = ""


def _gpu(name: str, major: int, minor: int, **fields: float) -> str:
    """XLA's description of an NVIDIA GPU.

    Args:
        name: as the driver gives it.
        major, minor: compute capability.
        **fields: of XLA's `gpu_device_info` that differ between chips.
    """
    same = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "fpus_per_core": 128,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    info = " ".join(f"{field}: {value}" for field, value in {**same, **fields}.items())
    return (
        f"gpu_device_info {{ {info} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } '
        f'runtime_version {{ major: 13 minor: 0 patch: 0 }} device_description_str: "{name}"'
    )


def _tpu(name: str, gibibytes: int, bandwidth: float, peak: float) -> Chip:
    return Chip(
        platform="tpu",
        name=f"{name}, {gibibytes} GiB",
        memory=gibibytes * 2**30,
        bandwidth=bandwidth,
        peak={"bfloat16": peak, "float32": peak, "highest": peak / 6},
    )


_HOPPER = {
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
}
_HOPPER_PEAK = {"bfloat16": 989e12, "float32": 494e12, "highest": 67e12}

CHIPS = {
    "h100": Chip(
        platform="cuda",
        name="H100 SXM, 80 GB",
        memory=80e9,
        bandwidth=3.35e12,
        peak=_HOPPER_PEAK,
        description=_gpu(
            "NVIDIA H100 80GB HBM3",
            9,
            0,
            **_HOPPER,
            memory_bandwidth=3352320000000,
            device_memory_size=84942979072,
        ),
    ),
    "h200": Chip(
        platform="cuda",
        name="H200 SXM, 141 GB",
        memory=141e9,
        bandwidth=4.8e12,
        peak=_HOPPER_PEAK,
        description=_gpu(
            "NVIDIA H200", 9, 0, **_HOPPER, memory_bandwidth=4800000000000, device_memory_size=150000000000
        ),
    ),
    "a100": Chip(
        platform="cuda",
        name="A100 SXM, 80 GB",
        memory=80e9,
        bandwidth=2.04e12,
        peak={"bfloat16": 312e12, "float32": 156e12, "highest": 19.5e12},
        description=_gpu(
            "NVIDIA A100-SXM4-80GB",
            8,
            0,
            threads_per_core_limit=2048,
            core_count=108,
            shared_memory_per_core=167936,
            shared_memory_per_block_optin=166912,
            l2_cache_size=41943040,
            clock_rate_ghz=1.41,
            memory_bandwidth=2039000000000,
            device_memory_size=85000000000,
        ),
    ),
    "rtx4090": Chip(
        platform="cuda",
        name="GeForce RTX 4090, 24 GB",
        memory=24e9,
        bandwidth=1.008e12,
        peak={"bfloat16": 165e12, "float32": 82.6e12, "highest": 82.6e12},
        description=_gpu(
            "NVIDIA GeForce RTX 4090",
            8,
            9,
            threads_per_core_limit=1536,
            core_count=128,
            shared_memory_per_core=102400,
            shared_memory_per_block_optin=101376,
            l2_cache_size=75497472,
            clock_rate_ghz=2.52,
            memory_bandwidth=1008096000000,
            device_memory_size=25250000000,
        ),
    ),
    "v4": _tpu("TPU v4", 32, 1.228e12, 275e12),
    "v5e": _tpu("TPU v5e", 16, 0.819e12, 197e12),
    "v5p": _tpu("TPU v5p", 95, 2.765e12, 459e12),
    "v6e": _tpu("TPU v6e", 32, 1.64e12, 918e12),
}

# As `jax.Device.device_kind` names them.
_DEVICE_KINDS = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip_of_device(kind: str) -> Chip | None:
    """The chip that JAX calls `kind`; None where its datasheet is not here."""
    name = _DEVICE_KINDS.get(kind)
    return CHIPS[name] if name else None
