"""The prior at evaluation: the same weights with either, told apart in records, files and kept passes."""

import json

from helpers import tiny, untrained

from jvdm.cli import commands


def config(prior):
    c = tiny.light_config().unlock()
    c.data.source = "digits"
    c.model.prior, c.eval.estimators, c.eval.num_images = prior, "vlb", 4
    return c.lock()


def test_weights_are_evaluated_with_either_prior(tmp_path, capsys):
    workdir = untrained.run(config("path"), tmp_path / "run")
    for prior in ("path", "standard"):
        commands.evaluate(commands.Request(config(prior), workdir))
    records = {path.name: json.loads(path.read_text()) for path in workdir.eval.glob("*.json")}
    assert len(records) == 2 and sum("_standard_prior_" in name for name in records) == 1
    of = {record["prior"]: record["terms"] for record in records.values()}
    own, standard = of["N(0, sigma_1^2 I)"], of["N(0, I)"]
    assert own["diffusion"] == standard["diffusion"] and own["reconstruction"] == standard["reconstruction"]
    assert own["prior"]["mean"] != standard["prior"]["mean"]
