"""The 3 x 3 convolution and its derivatives inside a scan: jvdm's rules against XLA's own.

python benchmarks/convolution.py [--channels=128] [--batch=4] [--length=4]
"""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import jax
from script import Parser, run, whole

from jvdm.core import host_memory
from jvdm.networks.convolution import convolve


def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def gflops(function, arguments, flops: float, repeats: int) -> float:
    """The best of `repeats` runs."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return flops / min(times) / 1e9


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--channels", type=whole, default=128)
    parser.add_argument("--batch", type=whole, default=4)
    parser.add_argument("--length", type=whole, default=4)
    parser.add_argument("--repeats", type=whole, default=3)
    args = parser.parse_args()
    host_memory.keep()
    size, c = 32, args.channels
    key = jax.random.key(0)
    x = jax.random.normal(key, (args.batch, size, size, c))
    kernels = 0.03 * jax.random.normal(key, (args.length, 3, 3, c, c))
    flops = 2.0 * 9 * args.batch * size * size * c * c * args.length
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {c} channels, batch {args.batch}: GFLOP/s")
    for name, conv in (("jvdm", convolve), ("XLA", plain)):

        def forward(x, kernels, conv=conv):
            return jax.lax.scan(lambda h, k: (conv(h, k), None), x, kernels)[0]

        def input_gradient(x, kernels, conv=conv):
            def body(h, k):
                return jax.vjp(lambda h: conv(h, k), h)[1](h)[0], None

            return jax.lax.scan(body, x, kernels)[0]

        def kernel_gradient(x, kernels, conv=conv):
            def body(h, k):
                return 1.01 * h, jax.vjp(lambda k: conv(h, k), k)[1](h)[0]

            return jax.lax.scan(body, x, kernels)

        for what, f in (("forward", forward), ("d input", input_gradient), ("d kernel", kernel_gradient)):
            print(f"{name:>5} {what:>9} {gflops(f, (x, kernels), flops, args.repeats):8.1f}", flush=True)


if __name__ == "__main__":
    run(main)
