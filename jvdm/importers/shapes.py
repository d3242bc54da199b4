"""Check imported parameters against a model, and name the option of the config that is probably wrong."""

from typing import TYPE_CHECKING, Any, cast

from flax.traverse_util import flatten_dict

from jvdm.core.errors import UserError

if TYPE_CHECKING:
    from jvdm.model import Model

Shape = tuple[int, ...]


def expected_by(model: "Model") -> dict[str, Shape]:
    """Shapes of the model's own parameters by path."""
    import jax

    return _shapes(jax.eval_shape(model.init, jax.random.key(0)))


def check(params: Any, expected: dict[str, Shape], name: str) -> None:
    """Compare imported parameters with those of a model.

    Args:
        params: nested dicts of arrays, `{"network", "schedule"}`, and `"encoder"` with a latent.
        expected: shapes of the model that the config selects, by path.
        name: of the parameters, for messages.

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
    leaves = cast(dict[str, Any], flatten_dict(params, sep="/"))
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def _rank(path: str) -> int:
    """The leaves whose mismatch is most informative come first."""
    order = (
        "schedule/",
        "network/conv_out/",
        "network/conv_in/",
        "network/down/block/norm1/",
        "network/down/block/",
        "network/down/",
        "encoder/conv_in/",
        "encoder/down/block/norm1/",
        "encoder/down/block/",
        "encoder/down/",
        "encoder/logits/",
        "encoder/",
    )
    return next((i for i, prefix in enumerate(order) if path.startswith(prefix)), len(order))


def _describe(shapes: dict[str, Shape], path: str) -> str:
    return f"shape {shapes[path]}" if path in shapes else "no such leaf"


def _hint(path: str, found: dict[str, Shape], expected: dict[str, Shape]) -> str:
    a, b = found.get(path), expected.get(path)
    part = path.split("/")[0]
    if part == "schedule":
        return _schedule_hint(path, found, expected)
    if part == "encoder" and (part_hint := _encoder_hint(path, found, expected)):
        return part_hint
    section = f"config.{part}"
    if "/attention/" in path and (a is None or b is None):
        return f" ({section}.attention? the checkpoint's is {a is not None})"
    if a is None or b is None or len(a) != len(b):
        return ""
    if path.startswith("network/conv_out/") and a[-1] != b[-1]:
        return f" (the checkpoint is for images of {a[-1]} channels, not {b[-1]})"
    if path.endswith("/conv_in/kernel") and a[2] != b[2]:
        plain = found.get("network/conv_out/bias") == (a[2],)
        return f" ({section}.fourier? the checkpoint's is False)" if plain else f" ({section}.fourier?)"
    if path.startswith((f"{part}/down/", f"{part}/up/")) and a[0] != b[0]:
        depth = a[0] - path.startswith(f"{part}/up/")
        return f" ({section}.num_blocks? the checkpoint's is {depth})"
    channels = _first(found, f"{part}/norm_out/norm/scale")
    if path == "network/condition1/kernel" and a[1:] == b[1:] and "schedule/hidden1/kernel" in found:
        # Rows of the time, without those of conditioning and latent.
        rows = a[0] - 1 - found["schedule/hidden1/kernel"][0]
        time = "gamma" if rows == channels else "pixel_gamma"
        return f" (config.model.time_input? the checkpoint's is {time})"
    return f" ({section}.channels? the checkpoint's is {channels})"


def _schedule_hint(path: str, found: dict[str, Shape], expected: dict[str, Shape]) -> str:
    a, b = found.get(path), expected.get(path)
    if a is None or b is None:
        return f" (config.schedule.name? the checkpoint's is {_schedule(found)})"
    if len(a) != len(b):
        return ""
    if path.startswith("schedule/hidden1/") and a[1:] == b[1:]:
        return f" (config.latent.size? the checkpoint's is {a[0]})"
    if path in ("schedule/a/bias", "schedule/b/bias", "schedule/d/bias"):
        return f" (the checkpoint is for images of {a[-1]} numbers, not {b[-1]})"
    known = "schedule/hidden1/bias" in found
    hidden = f" the checkpoint's is {_first(found, 'schedule/hidden1/bias')}" if known else ""
    return f" (config.schedule.hidden?{hidden})"


def _first(shapes: dict[str, Shape], path: str) -> int | str:
    """The first dimension of a leaf, if it has one."""
    return (*shapes.get(path, ()), "unknown")[0]


def _encoder_hint(path: str, found: dict[str, Shape], expected: dict[str, Shape]) -> str:
    """A hint that concerns only the encoder; "" where the network's hint applies to it."""
    a, b = found.get(path), expected.get(path)
    if not any(other.startswith("encoder/") for other in found):
        return " (config.latent.name? the checkpoint's is none)"
    if not any(other.startswith("encoder/") for other in expected):
        return " (config.latent.name? the checkpoint's is not none)"
    if (a is None or b is None) and "/attention/" not in path:
        return " (config.encoder.name?)"
    if not path.startswith("encoder/logits/") or a is None or b is None or len(a) != len(b):
        return ""
    if a[-1] == 2 * b[-1]:
        return " (config.latent.name? the checkpoint's is gaussian)"
    if 2 * a[-1] == b[-1]:
        return " (config.latent.name? the checkpoint's is not gaussian)"
    if a[-1] != b[-1]:
        return " (config.latent.size?)"
    return f" (the checkpoint is for images of {a[0]} pixels, not {b[0]})"


def _schedule(shapes: dict[str, Shape]) -> str:
    names = {path.split("/")[1] for path in shapes if path.startswith("schedule/")}
    kinds = {
        "fixed_linear": set(),
        "learned_scalar": {"b", "w"},
        "monotone_network_released": {"l1", "l2", "l3"},
        "polynomial": {"hidden1", "hidden2", "a", "b", "d"},
    }
    return next((kind for kind, parts in kinds.items() if names == parts), "unknown")
