"""VDM's training step in PyTorch, as fast on a CPU as could be found without torch.compile.

The network, loss and optimizer are those of jvdm's step with a fixed linear schedule, written anew
(`jvdm.networks.unet`, `jvdm.diffusion.losses`, `jvdm.training`):

    1. times:     t_i = (u + i / B) mod 1, gamma = gamma_0 + (gamma_1 - gamma_0) t
    2. noised:    z = alpha f + sigma eps, alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma)
    3. diffusion: 1/2 (gamma_1 - gamma_0) |eps - eps_hat(z, t)|^2
    4. constant in the parameters, computed to be logged: reconstruction and prior
    5. gradient of the mean in bits/dim, clipped; AdamW that decays kernels only; moving average

`against_pytorch.py` runs this file in an environment that has PyTorch, compares its numbers with jvdm's, and
measures it. Figures are the CPU time of one thread of PyTorch 2.14 on an AMD EPYC of the third generation, at
64 channels, 4 blocks, batch 8, 32x32. Other processes were running, so 5% is no difference. Tried were

    layout             contiguous takes 10% less than channels last; `build` takes the faster at each size
    large arrays       kept in the process, rather than returned to the system: 10% less
    dropout            in place, or by torch.native_dropout: no gain
    denormal numbers   flushed to zero: no gain (32 channels, 1 block, batch 64, 8x8)
    reconstruction     by log_softmax, a seventh of the time of logsumexp, whose exponential underflows slowly

AdamW is fused, attention is flash attention, and query, key and value are one product.
"""

import argparse
import math
import pathlib
import sys
from typing import Any

# The environment of jvdm has no PyTorch, so that pyright finds none.
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import turns

GAMMA_0, GAMMA_1 = -13.3, 5.0
NUM_LEVELS = 256
FOURIER = (6, 7)
EPSILON = 1e-6
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def zeros_(layer: Any) -> Any:
    """The layer, with a weight of zeros."""
    nn.init.zeros_(layer.weight)
    return layer


def conv3x3(inputs: int, outputs: int) -> Any:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResidualBlock(nn.Module):
    """Normalise, convolve, add the condition, normalise, convolve; plus the input."""

    def __init__(self, inputs: int, channels: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=EPSILON)
        self.conv1 = conv3x3(inputs, channels)
        self.condition = zeros_(nn.Linear(4 * channels, channels, bias=False))
        self.norm2 = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeros_(conv3x3(channels, channels))
        self.shortcut = nn.Conv2d(inputs, channels, 1) if inputs != channels else nn.Identity()

    def forward(self, x: Any, condition: Any) -> Any:
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.condition(condition)[:, :, None, None]
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return self.shortcut(x) + y


class SelfAttention(nn.Module):
    """Residual attention over pixels, of one head; query, key and value are one product."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeros_(nn.Linear(channels, channels))

    def forward(self, x: Any) -> Any:
        b, c, h, w = x.shape
        y = self.norm(x).permute(0, 2, 3, 1).reshape(b, 1, h * w, c)
        y = F.scaled_dot_product_attention(*self.qkv(y).chunk(3, dim=-1))
        return x + self.out(y).reshape(b, h, w, c).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """The U-Net of VDM: (z [b, 3, h, w], t [b]) -> eps_hat."""

    def __init__(self, channels: int, num_blocks: int, dropout: float, image_channels: int = 3):
        super().__init__()
        groups = next(n for n in range(min(32, channels // 4), 0, -1) if channels % n == 0)
        inputs = image_channels * (1 + 2 * len(FOURIER))

        def block(multiple: int = 1) -> ResidualBlock:
            return ResidualBlock(multiple * channels, channels, groups, dropout)

        # What else is known of an image is one number, which is zero without augmentation.
        self.condition1 = nn.Linear(channels + 1, 4 * channels)
        self.condition2 = nn.Linear(4 * channels, 4 * channels)
        self.conv_in = conv3x3(inputs, channels)
        self.down = nn.ModuleList(block() for _ in range(num_blocks))
        self.middle1 = block()
        self.middle_attention = SelfAttention(channels, groups)
        self.middle2 = block()
        self.up = nn.ModuleList(block(2) for _ in range(num_blocks + 1))
        self.norm_out = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.conv_out = zeros_(conv3x3(channels, image_channels))
        half = channels // 2
        self.register_buffer("frequencies", 1000.0 * 10_000.0 ** (-torch.arange(half) / (half - 1)))
        self.register_buffer("fourier", 2.0 * math.pi * 2.0 ** torch.tensor(FOURIER))

    def forward(self, z: Any, t: Any) -> Any:
        phase = t[:, None] * self.frequencies
        condition = torch.cat([phase.sin(), phase.cos(), torch.zeros_like(t)[:, None]], dim=1)
        condition = F.silu(self.condition2(F.silu(self.condition1(condition))))
        phase = (z[:, :, None] * self.fourier[:, None, None]).flatten(1, 2)
        h = self.conv_in(torch.cat([z, phase.sin(), phase.cos()], dim=1))
        kept = [h]
        for block in self.down:
            h = block(h, condition)
            kept.append(h)
        h = self.middle2(self.middle_attention(self.middle1(h, condition)), condition)
        for block in self.up:
            h = block(torch.cat([h, kept.pop()], dim=1), condition)
        return z + self.conv_out(F.silu(self.norm_out(h)))


def alpha_sigma(gamma: Any) -> tuple[Any, Any]:
    """Both of the shape of gamma."""
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def diffusion(network: Any, f: Any, t: Any, eps: Any) -> Any:
    """Terms 2 and 3 of encoded images f at times t: [b] nats."""
    alpha, sigma = alpha_sigma((GAMMA_0 + (GAMMA_1 - GAMMA_0) * t)[:, None, None, None])
    eps_hat = network(alpha * f + sigma * eps, t)
    return 0.5 * (GAMMA_1 - GAMMA_0) * (eps - eps_hat).square().flatten(1).sum(1)


@torch.no_grad()
def reconstruction_and_prior(x: Any, f: Any, eps_0: Any) -> tuple[Any, Any]:
    """Terms 4 of images x, levels that are encoded as f: each [b] nats."""
    step = 2.0 / NUM_LEVELS * math.exp(-0.5 * GAMMA_0)
    distance = (x.float()[..., None] - torch.arange(NUM_LEVELS)).mul_(step).add_(eps_0[..., None])
    log_likelihood = torch.log_softmax(distance.square_().mul_(-0.5), dim=-1)
    reconstruction = -log_likelihood.gather(-1, x.long()[..., None]).flatten(1).sum(1)
    return reconstruction, 0.5 * math.exp(-GAMMA_1) * f.square().flatten(1).sum(1)


class Training:
    """The network, its optimizer and moving average, and the step on one batch.

    Args:
        args: the size and dropout.
        layout: of images and kernels, a name of `LAYOUTS`.
    """

    learning_rate, warmup_steps, clip_norm, ema_rate = 2e-4, 100, 1.0, 0.9999

    def __init__(self, args: argparse.Namespace, layout: str):
        self.layout, self.format = layout, LAYOUTS[layout]
        self.network = UNet(args.channels, args.blocks, args.dropout).to(memory_format=self.format)
        self.parameters = list(self.network.parameters())
        kernels = [p for p in self.parameters if p.ndim > 1]
        others = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, self.learning_rate, betas=(0.9, 0.99), fused=True)
        self.num_steps = 0
        self.average = [p.detach().clone() for p in self.parameters]
        shape = (args.batch, 3, args.side, args.side)
        self.x = torch.randint(0, NUM_LEVELS, shape, dtype=torch.uint8).to(memory_format=self.format)

    def __call__(self) -> dict[str, float]:
        """One step, and what is logged of it."""
        b = len(self.x)
        t = (torch.rand(()) + torch.arange(b) / b) % 1.0
        eps, eps_0 = (torch.empty(self.x.shape, memory_format=self.format).normal_() for _ in range(2))
        terms = self.gradient(self.x, t, eps, eps_0)
        with torch.profiler.record_function("update"):
            norm = self.update(min(1.0, self.num_steps / self.warmup_steps))
        self.num_steps += 1
        per_nat = 1.0 / (self.x[0].numel() * math.log(2.0))
        return {"norm": norm.item(), **{name: per_nat * term.mean().item() for name, term in terms.items()}}

    def gradient(self, x: Any, t: Any, eps: Any, eps_0: Any) -> dict[str, Any]:
        """Leave the gradient of the mean bits/dim in the parameters.

        Args:
            x: [b, 3, h, w] levels.
            t: [b] times.
            eps, eps_0: [b, 3, h, w] noise at t and at time 0.

        Returns:
            The terms of the bound, each [b] nats.
        """
        f = (2.0 * x.float() + 1.0) / NUM_LEVELS - 1.0
        term = diffusion(self.network, f, t, eps)
        (term.mean() / (x[0].numel() * math.log(2.0))).backward()
        with torch.profiler.record_function("reconstruction and prior"):
            reconstruction, prior = reconstruction_and_prior(x, f, eps_0)
        return {"diffusion": term.detach(), "reconstruction": reconstruction, "prior": prior}

    @torch.no_grad()
    def update(self, warm: float) -> Any:
        """Change the parameters and their average by the gradient, whose norm is returned.

        Args:
            warm: the share of the learning rate.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = warm * self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(self.average, self.parameters, 1.0 - self.ema_rate)
        return norm


def of_jvdm(arrays: Any, tree: str, name: str) -> np.ndarray:
    """The array of jvdm that a parameter corresponds to, in the layout of PyTorch.

    Args:
        arrays: jvdm's, by path; those of a stack of blocks are one array.
        tree: the first part of the path.
        name: of the parameter.
    """
    *modules, kind = name.split(".")
    if modules[-1] == "qkv":
        parts = (".".join([*modules[:-1], part, kind]) for part in ("query", "key", "value"))
        return np.concatenate([of_jvdm(arrays, tree, part) for part in parts])
    index: Any = ...
    if modules[0] in ("down", "up"):
        index, modules[1] = int(modules[1]), "block"
    is_norm = modules[-1].startswith("norm")
    if is_norm:
        modules.append("norm")
    if kind == "weight":
        kind = "scale" if is_norm else "kernel"
    array = arrays["/".join([tree, *modules, kind])][index]
    # [..., inputs, outputs] to [outputs, inputs, ...]
    order = {2: (1, 0), 4: (3, 2, 0, 1)}
    return array.transpose(order[array.ndim]) if kind == "kernel" else array


def difference(ours: Any, theirs: Any, scale: Any) -> float:
    """|ours - theirs| / |scale|, of lists of arrays."""

    def norm(arrays):
        return math.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in arrays))

    return norm([a - b for a, b in zip(ours, theirs, strict=True)]) / norm(scale)


def compare(training: Training, file: str) -> dict[str, float]:
    """How far one step is from jvdm's on the same parameters and draws, without dropout.

    Args:
        training: of the same size; its parameters change.
        file: of `jvdm_step.one_step`.

    Returns:
        Of the terms, the gradient and the update, the norm of the difference over that of jvdm's.
    """
    arrays = np.load(file)
    network = training.network.eval()
    names, parameters = zip(*network.named_parameters(), strict=True)
    trees = {}
    for tree in ("params", "grads", "after"):
        found = [of_jvdm(arrays, tree, name) for name in names]
        trees[tree] = [a.reshape(p.shape) for a, p in zip(found, parameters, strict=True)]
    with torch.no_grad():
        for p, value in zip(parameters, trees["params"], strict=True):
            p.copy_(torch.from_numpy(value.copy()))
    before = [p.detach().numpy().copy() for p in parameters]
    x, eps, eps_0 = (torch.from_numpy(arrays[name]).permute(0, 3, 1, 2) for name in ("x", "eps", "eps_0"))
    terms = training.gradient(x, torch.from_numpy(arrays["u"]), eps, eps_0)
    grads = [p.grad.numpy().copy() for p in parameters]
    training.update(1.0)
    updates = [p.detach().numpy() - b for p, b in zip(parameters, before, strict=True)]
    theirs = [a - b for a, b in zip(trees["after"], trees["params"], strict=True)]
    return {
        **{
            name: difference([term.numpy()], [known], [known])
            for (name, term), known in zip(terms.items(), arrays["terms"], strict=True)
        },
        "gradient": difference(grads, trees["grads"], trees["grads"]),
        "update": difference(updates, theirs, theirs),
    }


def build(args: argparse.Namespace, seconds: float) -> tuple[Training, dict[str, Any]]:
    """What is measured, warmed up, and its number of parameters and layout.

    Args:
        args: the size, dropout and layout; "faster" is that with the fastest step.
        seconds: that each layout warms up for.
    """
    found, least = None, math.inf
    for layout in LAYOUTS if args.layout == "faster" else (args.layout,):
        training = Training(args, layout)
        training()  # oneDNN prepares its kernels.
        fastest = min(turns.timed(training, seconds)["steps"])
        if fastest < least:
            found, least = training, fastest
    assert found is not None
    return found, {"parameters": sum(p.numel() for p in found.parameters), "layout": found.layout}


# Kinds of operations for `profile`: the names of their calls, and of the sections of `Training`.
KINDS = {
    "convolution, forward": ("aten::conv2d",),
    "convolution, backward": ("ConvolutionBackward0",),
    "group norm, forward": ("aten::group_norm",),
    "group norm, backward": ("NativeGroupNormBackward0",),
    "swish, forward": ("aten::silu",),
    "swish, backward": ("SiluBackward0",),
    "dropout, forward": ("aten::dropout",),
    "dropout, backward": ("MulBackward0",),  # all but a few products of images
    "attention": ("aten::scaled_dot_product_attention", "ScaledDotProductFlashAttentionForCpuBackward0"),
    "additions, concatenation": ("aten::add", "aten::add_", "aten::cat", "AddBackward0", "CatBackward0"),
    "reconstruction and prior": ("reconstruction and prior",),
    "clipping, AdamW, average": ("update",),
}
KIND_OF_NAME = {name: kind for kind, names in KINDS.items() for name in names}


def kind_of(event: Any) -> str:
    """The kind of an event of the profiler: that of the outermost call that has one."""
    kind = "other"
    while event is not None:
        name = event.name.removeprefix("autograd::engine::evaluate_function: ")
        kind = KIND_OF_NAME.get(name, kind)
        event = event.cpu_parent
    return kind


def profile(training: Training) -> dict[str, float]:
    """Seconds of one step by kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        training()
    seconds: dict[str, float] = {}
    for event in profiler.events():
        kind = kind_of(event)
        seconds[kind] = seconds.get(kind, 0.0) + 1e-6 * event.self_cpu_time_total
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("channels", "blocks", "batch", "side"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--layout", choices=("faster", *LAYOUTS), default="faster")
    args = parser.parse_args()
    torch.manual_seed(0)
    built: list[Training] = []

    def build_one(seconds: float) -> dict[str, Any]:
        training, facts = build(args, seconds)
        built.append(training)
        return facts

    turns.serve(
        {
            "versions": lambda: f"torch {torch.__version__} with {torch.get_num_threads()} threads",
            "build": build_one,
            "turn": lambda seconds: turns.timed(built[0], seconds),
            "memory": turns.peak_memory,
            "profile": lambda: profile(built[0]),
            "compare": lambda file: compare(Training(args, "channels_last"), file),
        }
    )


if __name__ == "__main__":
    main()
