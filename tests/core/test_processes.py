"""Who has started several processes, and mistakes in the flags that say so."""

import http.server
import threading

import jax
import pytest

from jvdm.core import processes
from jvdm.core.errors import UserError

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, "Slurm"),
        # The step's own number counts: a batch script's one process is not its allocation's.
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, None),
        ({"SLURM_JOB_ID": "7"}, None),
        ({"SLURM_NTASKS": "2"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "two"}, None),
        (POD, "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"JOB_COMPLETION_INDEX": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": ""}, None),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1:8080"}, "TPU pod"),
    ],
)
def test_launchers(environment, expected):
    assert processes.launcher(environment) == expected


@pytest.fixture
def metadata(monkeypatch):
    """What the metadata server has of the workers, and the environment that leads to it; with libtpu."""
    workers = [b""]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = workers[0] and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if found and self.path.endswith("/worker-network-endpoints") else 404)
            self.end_headers()
            self.wfile.write(workers[0])

        def log_message(self, *_):
            pass

    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield workers, {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        server.shutdown()
        thread.join()


def test_the_workers_of_a_tpu_virtual_machine(metadata, monkeypatch):
    workers, environment = metadata
    assert processes.launcher(environment) is None, "none, as outside of a slice"
    workers[0] = b"10.0.0.1"
    assert processes.launcher(environment) is None
    workers[0] = b"unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2"
    assert processes.launcher(environment) == "TPU pod"
    assert processes.launcher({**environment, "TPU_SKIP_MDS_QUERY": "1"}) is None
    assert processes.launcher({**environment, "TPU_WORKER_HOSTNAMES": "one"}) is None, (
        "the variable is enough"
    )
    assert processes.launcher({"GCE_METADATA_IP": "127.0.0.1:9"}) is None, "nobody there"
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    assert processes.launcher(environment) is None, "no libtpu, no TPU"


@pytest.fixture
def calls(monkeypatch):
    """Arguments of jax.distributed.initialize, which is not run; and no launcher's environment."""
    made = []
    monkeypatch.setattr(processes.os, "environ", {})
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: made.append(arguments))
    return made


def initialize(choice="auto", coordinator=None, num_processes=None, process_id=None):
    processes.initialize(choice, coordinator=coordinator, num_processes=num_processes, process_id=process_id)


def test_one_process_by_default(calls):
    initialize()
    assert not calls


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_explicit_flags(calls, choice):
    initialize(choice, "host:1", 2, 1)
    assert calls == [("host:1", 2, 1)]


def test_a_launcher_is_enough(calls, monkeypatch):
    monkeypatch.setattr(processes.os, "environ", SLURM)
    initialize()
    assert calls == [(None, None, None)], "jax reads the environment itself"
    initialize("off")
    assert len(calls) == 1, "off is off"


def test_on_asks_jax(calls):
    initialize("on")
    assert calls == [(None, None, None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sometimes",), "--distributed"),
        (("auto", "host:1"), "^--num_processes, --process_id missing: .* go together$"),
        (("on", None, 2, 0), "^--coordinator missing"),
        (("off", "host:1", 2, 0), "^--distributed=off does not go with"),
        (("off", None, 2), "^--distributed=off does not go with"),
        (("on", "host:1", 2, 2), "^--process_id=2 is not from 0 to 1$"),
        (("on", "host:1", 2, -1), "^--process_id=-1 is not from 0 to 1$"),
        (("on", "host:1", 0, 0), "^--num_processes=0"),
        (("on", "host", 2, 0), "^--coordinator=host is not HOST:PORT$"),
        (("on", "host:port", 2, 0), "^--coordinator=host:port is not HOST:PORT$"),
    ],
)
def test_mistakes(calls, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        initialize(*arguments)
    assert "\n" not in str(error.value)
    assert not calls


@pytest.mark.parametrize("error", [RuntimeError("no\ncluster"), ValueError("bad"), OSError("gone")])
def test_no_connection(calls, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match="^the processes did not come together") as caught:
        initialize("on", "host:1", 2, 0)
    assert "\n" not in str(caught.value)


def test_one_process_agrees_with_itself():
    processes.wait_for_all("here")
    assert processes.is_main() and processes.least(3) == 3
