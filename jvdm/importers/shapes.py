"""Whether imported parameters fit a model, and which option of the config is to blame if not."""

from typing import TYPE_CHECKING, Any

from jvdm.errors import UserError
from jvdm.importers.flax_checkpoint import flatten

if TYPE_CHECKING:
    from jvdm.model import Model

Shape = tuple[int, ...]


def expected_by(model: "Model") -> dict[str, Shape]:
    """Shape by path of the parameters that the model would initialise."""
    import jax

    return _shapes(jax.eval_shape(model.init, jax.random.key(0)))


def check(params: Any, expected: dict[str, Shape], name: str) -> None:
    """Compares imported parameters with those of a model.

    Args:
        params: nested dicts of arrays, `{"network", "schedule"}`.
        expected: of the model that the config selects.
        name: of the parameters, for the message.

    Raises:
        UserError: names the first leaf that does not fit, both shapes, and the likely option.
    """
    found = _shapes(params)
    if found == expected:
        return
    for path in sorted(found.keys() | expected.keys(), key=lambda path: (_rank(path), path)):
        if found.get(path) == expected.get(path):
            continue
        raise UserError(
            f"the checkpoint does not fit the config: {name} {path!r} has "
            f"{_describe(found, path)} in the checkpoint, {_describe(expected, path)} in the config's model"
            f"{_hint(path, found, expected)}"
        )


def _shapes(params: Any) -> dict[str, Shape]:
    return {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}


def _rank(path: str) -> int:
    """Leaves whose mismatch tells the most come first."""
    order = (
        "schedule/",
        "network/conv_out/",
        "network/conv_in/",
        "network/down/block/norm1/",
        "network/down/block/",
        "network/down/",
    )
    return next((i for i, prefix in enumerate(order) if path.startswith(prefix)), len(order))


def _describe(shapes: dict[str, Shape], path: str) -> str:
    return f"shape {shapes[path]}" if path in shapes else "no such leaf"


def _hint(path: str, found: dict[str, Shape], expected: dict[str, Shape]) -> str:
    a, b = found.get(path), expected.get(path)
    if path.startswith("schedule/"):
        if a is not None and b is not None:
            return " (config.schedule.hidden?)"
        return f" (config.schedule.name? the checkpoint's is {_schedule(found)})"
    if "/attention/" in path and (a is None or b is None):
        return f" (config.network.attention? the checkpoint's is {a is not None})"
    if a is None or b is None or len(a) != len(b):
        return ""
    if path.startswith("network/conv_out/") and a[-1] != b[-1]:
        return f" (the checkpoint is for images of {a[-1]} channels, not {b[-1]})"
    if path == "network/conv_in/kernel" and a[2] != b[2]:
        plain = found.get("network/conv_out/bias") == (a[2],)
        return (
            " (config.network.fourier? the checkpoint's is False)" if plain else " (config.network.fourier?)"
        )
    if path.startswith(("network/down/", "network/up/")) and a[0] != b[0]:
        depth = a[0] - path.startswith("network/up/")
        return f" (config.network.num_blocks? the checkpoint's is {depth})"
    channels = found.get("network/norm_out/norm/scale", ("unknown",))[0]
    return f" (config.network.channels? the checkpoint's is {channels})"


def _schedule(shapes: dict[str, Shape]) -> str:
    names = {path.split("/")[1] for path in shapes if path.startswith("schedule/")}
    if not names:
        return "fixed_linear"
    if names == {"b", "w"}:
        return "learned_scalar"
    return "monotone_network_released" if names == {"l1", "l2", "l3"} else "another one"
