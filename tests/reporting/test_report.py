"""The page of a run: complete, self-contained, escaped, and honest about what is damaged."""

import html.parser
import json
import pathlib
import re

import numpy as np
import pytest
from helpers import forked, made_up_run, tiny

from jvdm.core.errors import UserError
from jvdm.networks import NETWORKS
from jvdm.reporting import charts, config_tables, curves, record_tables
from jvdm.reporting import images as image_lib
from jvdm.reporting.report import render, write_report
from jvdm.reporting.runs import read_run

ROOT = pathlib.Path(__file__).parent.parent.parent
TAGS = """
    html head meta title link style body header footer nav main section aside h1 h2 h3 p ul li a div span
    strong code figure figcaption img svg path table caption thead tbody tr th td details summary label input
    script
"""


class Page(html.parser.HTMLParser):
    """What a page consists of; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


def report(path, *others):
    """(the page, its notes)."""
    written = write_report(path, others)
    assert written.path == path / "report.html"
    return Page(written.path.read_text(encoding="utf-8")), written.notes


@pytest.fixture
def workdir(tmp_path):
    return made_up_run.write(tmp_path / "run")


SHOWN = """
VLB, continuous
ODE, truncated normal, K = 4
2.6069 ± 0.0110
0.1847 ± 0.0008
0.0053
upper
digits test
da7a5e7
3e1947
exact KL(q || p)
2.5000 (no bound)
charges less
+0.0012 ± 0.0008
336
dopri5 at 1e-06
297
64
float32, highest
diffrax
step 300 of 400
step 100
step 200
16 samples of --mode=sample, 8×8×1
noise schedule γ(t) of every pixel
noise schedule γ(t) and its derivative, step 300
diffusion loss against γ, VLB
gradient norm
learning rate
network.channels
Checkpoints of steps: 300
metrics.jsonl
""".strip().splitlines()


def test_everything_is_shown(workdir):
    page, notes = report(workdir)
    assert notes == []
    for text in SHOWN:
        assert text in page.text, text
    assert str(workdir) in page.text
    assert page.tags.count("img") == 7
    assert set(page.tags) <= set(TAGS.split())


def test_nothing_is_loaded(workdir):
    page, _ = report(workdir)
    links = page.values("src") + page.values("href")
    assert len(links) > 10
    assert all(link.startswith(("data:", "#")) for link in links)
    text = (workdir / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<script[^>]+src|<iframe|fetch\(|XMLHttp", text)
    assert {link[1:] for link in links if link.startswith("#")} <= set(page.values("id"))
    assert any(value.startswith("default-src 'none'; ") for value in page.values("content"))


def test_for_readers_of_every_kind(workdir):
    """Language, headings, names of pictures, headers of tables, and the reader's own size of the page."""
    page, _ = report(workdir)
    assert ("html", "lang", "en") in page.attributes
    assert page.tags.count("h1") == 1
    assert len(page.values("alt")) == page.tags.count("img") and all(page.values("alt"))
    assert page.tags.count("caption") == page.tags.count("table")
    assert page.values("scope").count("col") > 10 and "row" in page.values("scope")
    assert page.tags.count("svg") == len([v for _, n, v in page.attributes if n == "role" and v == "img"])
    assert any("width=device-width" in value for value in page.values("content"))
    style = (workdir / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "prefers-color-scheme: dark" in style and "@media print" in style


def test_bytes_depend_on_the_workdir_alone(workdir):
    report(workdir)
    first = (workdir / "report.html").read_bytes()
    report(workdir)
    assert (workdir / "report.html").read_bytes() == first
    assert not [path.name for path in workdir.iterdir() if path.name.endswith(".tmp")]


def test_what_comes_from_files_is_text(tmp_path):
    hostile = made_up_run.HOSTILE
    config = tiny.config().unlock()
    config.data.source = hostile
    lines = [*made_up_run.metrics(), {"step": 310, "time": 0.0, f"train/{hostile}": 1.0}]
    record = made_up_run.vlb(
        provenance=made_up_run.provenance(dataset=hostile, device="<svg onload=alert(1)>")
    )
    name = "run <img src=x onerror=alert(1)> & co"
    workdir = made_up_run.write(tmp_path / name, config=config, lines=lines, records=[record])
    (workdir / "samples" / '"><svg onload=alert(1)>.png').write_bytes(b"no picture")
    image_lib.write_png(workdir / "plots" / "' onerror='alert(1).png", np.zeros((4, 4, 3), np.uint8))
    (workdir / "eval" / "<b>.json").write_text('{"value": "</aside><b>"}')
    page, notes = report(workdir)
    assert len(notes) == 2
    assert set(page.tags) <= set(TAGS.split())
    assert page.tags.count("script") == page.tags.count("style") == page.tags.count("h1") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert name in page.text and "<svg onload=alert(1)>" in page.text
    assert "\u202e" not in page.text and "\ufffd" in page.text
    text = write_report(workdir).text
    assert "onerror" in text and "\u202e" not in text, "the terminal gets no marks of direction either"
    page, _ = report(workdir, made_up_run.write(tmp_path / "other"))
    assert set(page.tags) <= set(TAGS.split()) and page.tags.count("script") == 1


def test_names_that_are_no_unicode_can_be_written(tmp_path):
    workdir = made_up_run.write(tmp_path / "a")
    run = read_run(workdir)
    assert "<h1>a\ufffd\ufffd&lt;</h1>" in render({"a\udcff\x00<": run})


def _edit(name, content):
    def damage(path):
        (path / name).write_bytes(content)

    return damage


def _append(content):
    def damage(path):
        with open(path / "metrics.jsonl", "ab") as file:
            file.write(content)

    return damage


def _with_record(field, value):
    def damage(path):
        name = sorted((path / "eval").glob("vlb*.json"))[0]
        name.write_text(json.dumps({**json.loads(name.read_text()), field: value}))

    return damage


DAMAGE = {
    "line": (
        _edit("metrics.jsonl", b'{"step": 1, "train/bpd": 3.0}\n{oops\n{"step": 2}\n'),
        "1 of 3 lines are damaged",
    ),
    "lines": (
        _append(b"\n1\n[]\n{}\n" + b'{"step": "x"}\n{"step": 1, "a": {}}\n'),
        "6 of 39 lines are damaged",
    ),
    "last line": (_append(b'{"step": 31'), "line 34, the last, is incomplete and was left out"),
    "step beyond any": (_append(b'{"step": 1' + b"0" * 400 + b"}\n{}\n"), "2 of 35 lines"),
    "depth": (_edit("config.json", b"[" * 100_000), "config.json: damaged"),
    "bytes": (_append(b"\xff\xfe\n" + b"\x00\n"), "2 of 35 lines"),
    "no metrics": (lambda path: (path / "metrics.jsonl").unlink(), "metrics.jsonl: missing"),
    "config": (_edit("config.json", b"{"), "config.json: damaged"),
    "list as config": (_edit("config.json", b"[]"), "holds a list"),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json: missing"),
    "record": (_edit("eval/odd.json", b'{"value": 1'), "eval/odd.json: damaged, or not a record"),
    "record of something else": (_edit("eval/odd.json", b"[1]"), "eval/odd.json: damaged, or not a record"),
    "record without a field": (_edit("eval/odd.json", b'{"value": 1.0}'), "field 'estimator' is missing"),
    "record of a word": (_with_record("value", "low"), "damaged, or not a record"),
    "record with odd terms": (_with_record("terms", {"prior": 3.0}), "damaged, or not a record"),
    "record with an odd description": (_with_record("description", [1]), "damaged, or not a record"),
    "record with an odd ODE": (_with_record("ode", {"name": 1}), "damaged, or not a record"),
    "record with odd versions": (
        _with_record("provenance", {"dataset": "d", "split": "test", "step": 1, "versions": [1]}),
        "damaged, or not a record",
    ),
    "record without provenance": (_with_record("provenance", None), "damaged, or not a record"),
    "picture": (
        _edit("samples/step_00000300.png", b"\x89PNG\r\n\x1a\n"),
        "samples/step_00000300.png: damaged",
    ),
    "picture of another kind": (_edit("plots/odd.png", b"GIF89a"), "plots/odd.png: damaged, or not a PNG"),
    "large picture": (_edit("plots/large.png", bytes(4_000_001)), "4.0 MB, more than 4"),
    "stopped pass": (
        lambda path: (path / "eval" / "vlb_T5.partial").mkdir(),
        "eval/vlb_T5: this evaluation was stopped",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_shown(workdir, damage, unchecked):
    change, note = DAMAGE[damage]
    change(workdir)
    page, notes = report(workdir)
    (shown,) = notes
    assert shown.startswith(f"{workdir}: ") and note in shown
    assert shown.removeprefix(f"{workdir}: ") in page.text
    assert "Missing or damaged" in page.text
    assert "ODE, truncated normal" in page.text, "the rest is shown"


def test_half_a_picture_is_damaged(workdir):
    path = workdir / "samples" / "step_00000200.png"
    path.write_bytes(path.read_bytes()[:-200])
    _, notes = report(workdir)
    assert "samples/step_00000200.png: damaged" in notes[0]


def test_workdirs_that_are_none(workdir, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, expected in (("nope", "no such folder"), ("file", "not a folder"), ("empty", "holds no run")):
        for given in ([tmp_path / name], [workdir, tmp_path / name]):
            with pytest.raises(UserError, match=expected) as raised:
                write_report(given[0], given[1:])
            assert str(tmp_path / name) in str(raised.value)
    assert not (tmp_path / "empty" / "report.html").exists()
    with pytest.raises(UserError, match="given twice"):
        write_report(workdir, [tmp_path / "empty" / ".." / workdir.name])


def test_run_in_progress(tmp_path):
    """No evaluation, no samples, no plots, no checkpoint."""
    workdir = tmp_path / "run"
    made_up_run.write(tmp_path / "whole")
    workdir.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (workdir / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    page, notes = report(workdir)
    assert notes == []
    for text in (
        "step 300 of 400",
        "no evaluation yet",
        "No samples",
        "No plots yet",
        "Checkpoints of steps: none",
    ):
        assert text in page.text
    (workdir / "metrics.jsonl").write_text("")
    page, notes = report(workdir)
    assert notes == [] and "No metrics recorded yet." in page.text


def test_continuous_data_is_in_nats(tmp_path):
    words = "ELBO, random slice, 1 probe"
    records = [made_up_run.vlb(units="nats", estimator="elbo", description=words)]
    page, _ = report(made_up_run.write(tmp_path / "run", records=records, total="nats"))
    assert words in page.text
    assert "negative log-likelihood nats" in page.text
    assert "bits/dim" not in page.text


def test_scores_are_records_too(workdir):
    made_up_run.vlb(value=3.25).write(workdir / "scores" / "folder_test_vlb.json")
    page, _ = report(workdir)
    assert "VLB, continuous, scores" in page.text and "3.2500" in page.text


def test_equal_evaluations_are_told_apart(tmp_path):
    discrete = made_up_run.vlb(timesteps=5, description="VLB, T = 5")
    records = [made_up_run.vlb(), made_up_run.vlb(num_draws=8), discrete]
    page, _ = report(made_up_run.write(tmp_path / "run", records=records))
    for label in ("VLB, continuous, step 300, 297×64", "VLB, continuous, step 300, 297×8", "VLB, T = 5"):
        assert label in page.text


def test_records_of_older_versions(workdir):
    """Those before surrogates and slices, and with a field that is not known yet."""
    path = sorted((workdir / "eval").glob("vlb*.json"))[0]
    record = json.loads(path.read_text())
    del record["surrogate"], record["slices"], record["time_density"]
    path.write_text(json.dumps({**record, "of_the_future": {"x": 12.5}}))
    page, notes = report(workdir)
    assert notes == [] and "of the future, x – 12.5" in page.text


def test_the_prior_of_every_format():
    """Format 2 has it in every record, format 1 in those of the ODE."""
    new, old = (json.loads(made_up_run.ode().to_json()) for _ in range(2))
    old["ode"]["prior"] = "N(0, I)"
    del old["format"], old["prior"], old["description"]
    entries = [record_tables.Entry(run="", name=name, record=r) for name, r in (("new", new), ("old", old))]
    table = record_tables.everything(entries)
    rows = [row for group in table.groups.values() for row in group]
    assert [row for row in rows if "prior" in row[0]] == [["prior at t = 1", "N(0, sigma_1^2 I)", "N(0, I)"]]
    assert not [row for row in rows if "description" in row[0]]


# The fields of a record that its words need, and the words of format 1.
WORDS = {
    "VLB, continuous": {"estimator": "vlb", "timesteps": 0},
    "VLB, T = 5": {"estimator": "vlb", "timesteps": 5},
    "ELBO, random slice, 2 probes": {"estimator": "elbo", "slices": {"trace": {"probes": 2}}},
    "ELBO, random slice, exact trace": {"estimator": "elbo", "slices": {"trace": {}}},
    "ScoreFlow bound, from t = 1e-05": {"estimator": "scoreflow", "slices": {"epsilon": 1e-5}},
    "ODE, truncated normal, K = 4": {
        "estimator": "ode",
        "ode": {"dequantization": {"name": "truncated_normal"}, "importance_samples": 4},
    },
    "ODE": {"estimator": "ode", "ode": {"dequantization": {"name": "none"}, "importance_samples": 1}},
}


@pytest.mark.parametrize("words", WORDS)
def test_the_words_of_a_record(words):
    """Format 1 has them in its settings, format 2 as a field, which wins."""
    assert record_tables.description(WORDS[words]) == words
    assert record_tables.description({**WORDS[words], "description": "mine"}) == "mine"


def test_comparison(tmp_path):
    config = tiny.config(num_steps=400).unlock()
    config.optimizer.learning_rate = 0.0123
    first = made_up_run.write(tmp_path / "a" / "run")
    second = made_up_run.write(tmp_path / "b" / "run", config=config, records=[made_up_run.vlb(value=2.4)])
    third = made_up_run.write(tmp_path / "c" / "points", records=[], total="nats")
    page, notes = report(first, second, third)
    assert notes == [] and not (second / "report.html").exists()
    assert "a/run: VLB, continuous 2.6069 ± 0.0110" in page.text
    assert "b/run: VLB, continuous 2.4000 ± 0.0110" in page.text
    assert "Fields in which the configs differ" in page.text
    assert "optimizer.learning_rate 0.001 0.0123 0.001" in page.text
    assert "optimizer.b1" not in page.text
    assert (
        page.text.count("bits per dimension bits/dim") == page.text.count("negative log-likelihood nats") == 1
    )
    assert "a/run: step 100" not in page.text and "a/run: step 200" in page.text, "the last grid only"
    (second / "config.json").unlink()
    (third / "config.json").unlink()
    page, notes = report(first, second, third)
    assert len(notes) == 2 and "there is nothing to compare" in page.text


def test_changed_fields():
    """Options are compared with the defaults of the component that is chosen."""
    config = tiny.config().unlock()
    config.network = NETWORKS.spec("ddpm_unet", dropout=0.37)
    del config.optimizer["b1"]
    saved = {**json.loads(json.dumps(config.to_dict())), "future": {"field": 1}}
    found = {field.name: field for field in config_tables.fields(saved)}
    changed = {name for name, field in found.items() if field.changed}
    assert {"network.name", "network.dropout", "schedule.gamma_min", "future.field"} <= changed
    options = NETWORKS.options("ddpm_unet")
    assert all(found[f"network.{name}"].default == options[name] for name in options)
    assert not {f"network.{name}" for name in options if name != "dropout"} & changed
    assert "optimizer.b1" in found and "optimizer.b1" not in changed
    assert "network.fourier" not in found, "an option of another component"


def test_long_runs_make_no_long_pages(tmp_path):
    lines = made_up_run.metrics(num_lines=40_000)
    lines[20_000]["train/bpd"] = 9.75
    workdir = made_up_run.write(tmp_path / "run", lines=lines)
    for step in range(0, 4000, 100):
        image_lib.write_png(workdir / "samples" / f"step_{step:08d}.png", np.zeros((8, 8, 3), np.uint8))
    page, notes = report(workdir)
    assert (workdir / "report.html").stat().st_size < 500_000
    assert "only 12 of 40 grids are shown" in notes[0]
    assert "step 0 " in page.text and "step 3,900" in page.text


def test_values_that_are_not_finite_are_told(tmp_path):
    lines = made_up_run.metrics()
    lines[5]["train/bpd"], lines[6]["train/bpd"], lines[7]["train/odd"] = "nan", "inf", "-inf"
    lines[8] |= {"train/grad_norm": 1e308, "time": 1e300}
    lines[9] |= {"train/grad_norm": -1e308, "time": "nan"}
    page, _ = report(made_up_run.write(tmp_path / "run", lines=lines))
    assert "2 values not finite, left out" in page.text
    assert "odd bits/dim nothing to draw 1 value not finite" in page.text


@pytest.mark.parametrize("num", [1, 2, 41])
def test_short_curves(num):
    for values in (np.ones(num), np.zeros(num), np.linspace(1, 1e9, num)):
        series = curves.Series(steps=np.arange(num) * 10.0, values=values)
        for term in ("bpd", "grad_norm", "learning_rate"):
            chart = charts.chart(term, [charts.Line("train", "train", series)], units="bits/dim")
            assert len(chart.paths) >= 2 and chart.ticks_x and chart.ticks_y
            assert not re.search("nan|inf", repr(chart))


def test_command(workdir, tmp_path):
    """Without a config; a note is a warning on the terminal too."""
    (workdir / "config.json").write_text("{")
    other = made_up_run.write(tmp_path / "other")
    done = forked.run("--mode=report", f"--workdir={workdir}", f"--compare={other}")
    assert done.returncode == 0, done.stderr
    assert f"report     {workdir / 'report.html'}" in done.stdout
    (warning,) = done.stderr.splitlines()
    assert warning.startswith(f"WARNING: {workdir}: config.json: damaged")


MISTAKES = {
    "no workdir": (["--mode=report"], "--workdir is missing"),
    "wrong workdir": (["--mode=report", "--workdir=nope"], "no such folder"),
    "checkpoint": (["--mode=report", "--workdir=.", "--checkpoint=x"], "report does not take it"),
    "compare": (
        ["--mode=eval", "--config=configs/digits.py", "--compare=x"],
        "--compare is for the mode report",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake):
    arguments, expected = MISTAKES[mistake]
    done = forked.run(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("jvdm: error: ") and expected in line
