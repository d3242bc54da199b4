"""The page in a browser: it renders, asks the network for nothing, and its script runs. Needs Chromium."""

import html
import json
import re
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
import pytest
from helpers import made_up_run
from PIL import Image

from jvdm.reporting.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
    # Nothing leaves, not even to this machine: no proxy listens there.
    "--proxy-server=http://127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
)

# Writes what it finds into the page; it is added to a copy, whose policy allows it.
PROBE = """
addEventListener("load", () => {
  const images = [...document.images], all = (selector) => [...document.querySelectorAll(selector)];
  const plot = document.querySelector(".plot"), box = plot.getBoundingClientRect();
  plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right - 2, clientY: box.top + 5}));
  const search = document.getElementById("search");
  search.value = "num_steps";
  search.dispatchEvent(new Event("input"));
  const found = {
    images: images.length,
    loaded: images.filter((image) => image.complete && image.naturalWidth > 0).length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    drawn: all(".plot .line").filter((line) => line.getBoundingClientRect().width > 50).length,
    tip: plot.querySelector(".tip").textContent,
    found: document.getElementById("found").textContent,
    rows: all("#fields tbody tr").filter((row) => row.offsetHeight > 0).length,
    background: getComputedStyle(document.body).backgroundColor,
    cell: getComputedStyle(document.querySelector("td.number")).textAlign,
  };
  const probe = document.createElement("pre");
  Object.assign(probe, {id: "probe", textContent: JSON.stringify(found)});
  document.body.append(probe);
});
"""


class Visit(NamedTuple):
    """What a page came to: its source in the end, lines on the console, and what it asked the network for."""

    source: str
    console: list[str]
    requests: list[str]


def visit(page, profile, *flags):
    """Open a page with a fresh profile."""
    log = profile / "requests.json"
    profile.mkdir(exist_ok=True)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--log-net-log={log}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    parameters = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
    # The browser's own requests come from no page.
    asked = [
        p["url"] for p in parameters if "url" in p and p.get("initiator", "not an origin") != "not an origin"
    ]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(done.stdout, console, [url for url in asked if not url.startswith(("data:", "file:"))])


def with_scripts(page, allowed, more=""):
    """A copy of the page whose policy allows other scripts, and that has one more."""
    text = re.sub(r"script-src 'sha256-[^;']+'", f"script-src {allowed}", page.read_text())
    assert f"script-src {allowed}" in text
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", f"<script>{more}</script></body>"))
    return copy


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    lines = [*made_up_run.metrics(200), {"step": 2010, "time": 0.0, f"train/{made_up_run.HOSTILE}": 1.0}]
    return write_report(made_up_run.write(folder / "run <b> #1", lines=lines)).path


def test_renders_without_network(page, tmp_path):
    """The page as it is: no message on the console, no request, and its policy admits its script."""
    seen = visit(page, tmp_path, "--dump-dom")
    assert seen.console == [] and seen.requests == []
    assert 'class="cursor"' in seen.source, "the script ran"
    for text in ("2.6069 ± 0.0110", "ODE, truncated normal, K = 4", "step 2,010 of 400", "onerror=alert(1)"):
        assert text in html.unescape(seen.source)


def test_a_request_would_be_seen(tmp_path):
    """The log and the console tell, so that their silence means something."""
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://example.org/x.png'><script>nothing.there()</script>")
    seen = visit(bad, tmp_path / "profile", "--dump-dom")
    assert seen.requests == ["http://example.org/x.png"]
    assert any("nothing is not defined" in line for line in seen.console)


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_what_the_reader_sees(page, tmp_path, width, dark):
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    seen = visit(
        with_scripts(page, "'unsafe-inline'", PROBE),
        tmp_path,
        "--dump-dom",
        f"--window-size={width},900",
        scheme,
    )
    assert seen.console == [] and seen.requests == []
    found = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', seen.source)[1]))
    assert found["images"] == found["loaded"] == 7
    assert found["overflow"] <= 0, "the page itself does not scroll sideways"
    assert found["drawn"] >= 6
    assert found["tip"].startswith("step 2,000\ntrain  2.0") and "test  2.1" in found["tip"]
    assert (found["found"], found["rows"], found["cell"]) == ("1 found", 1, "right")
    assert found["background"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


def test_works_without_script(page, tmp_path):
    """What is read needs none: the curves are drawn."""
    shot = tmp_path / "shot.png"
    copy = with_scripts(page, "'none'")
    seen = visit(copy, tmp_path / "profile", f"--screenshot={shot}", "--window-size=1000,2400")
    assert seen.console and all("Content Security Policy" in line for line in seen.console)
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.int64)
    for colour in ((0x2F, 0x6D, 0xB3), (0xD9, 0x62, 0x2B)):
        assert (np.abs(pixels - colour).sum(axis=2) < 12).sum() > 500, colour
