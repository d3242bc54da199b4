"""A workdir as an older jvdm has left it, from one of the present."""

import json
import pathlib
import shutil

import numpy as np

from jvdm.runs import pending


def _without_number(path: pathlib.Path) -> None:
    content = json.loads(path.read_text())
    del content["format"]
    path.write_text(json.dumps(content))


def to_format_1(workdir: pathlib.Path) -> None:
    """No numbers; the state is the item `default`, and what is pending is beside the checkpoints."""
    for path in (workdir / "checkpoints").iterdir():
        undone = pending.to_json(pending.read(path))
        arrays = {name: np.array(values, np.float32) for name, values in undone["window"].items()}
        (workdir / "notes").mkdir(exist_ok=True)
        np.savez(workdir / "notes" / f"{path.name}.npz", todo=np.array(undone["todo"], np.str_), **arrays)
        shutil.rmtree(path / "pending")
        (path / "state").rename(path / "default")
        _without_number(path / "metrics" / "metrics")
        metadata = path / "_CHECKPOINT_METADATA"
        metadata.write_text(metadata.read_text().replace('"state"', '"default"'))
    for path in (workdir / "config.json", workdir / "data.json", *workdir.glob("eval/*.json")):
        _without_number(path)
    config = json.loads((workdir / "config.json").read_text())
    config["model"].pop("prior", None)
    (workdir / "config.json").write_text(json.dumps(config))
