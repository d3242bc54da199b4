"""Several processes as one program: `jax.distributed` where a launcher has started more than one.

What launchers say in the environment, and JAX reads from there:

    Slurm        SLURM_JOB_ID, SLURM_STEP_NUM_TASKS (or SLURM_NTASKS) above 1
    Open MPI     OMPI_COMM_WORLD_SIZE above 1
    Kubernetes   KUBERNETES_SERVICE_HOST and JOB_COMPLETION_INDEX, of an indexed Job or a JobSet
    TPU pod      TPU_WORKER_HOSTNAMES or TPU_PROCESS_ADDRESSES with more than one name, or
                 MEGASCALE_COORDINATOR_ADDRESS

A TPU virtual machine says nothing there: with libtpu installed, its metadata server is asked for the workers.
"""

import http
import http.client
import importlib.util
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Mapping

import jax
import numpy as np

from jvdm.core.errors import UserError, one_line, unknown

log = logging.getLogger("jvdm")

CHOICES = ("auto", "on", "off")
METADATA_S, METADATA_TRIES = 3.0, 3  # for the metadata server to answer


def launcher(environment: Mapping[str, str]) -> str | None:
    """Which launcher has started several processes; None if none has.

    Args:
        environment: variables by name.
    """

    def number(*names: str) -> int:
        values = [environment[name] for name in names if environment.get(name, "").isdigit()]
        return int(values[0]) if values else 1

    if "SLURM_JOB_ID" in environment and number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") > 1:
        return "Slurm"
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return "TPU pod"
    if len((names or _tpu_workers(environment)).split(",")) > 1:
        return "TPU pod"
    return None


def _tpu_workers(environment: Mapping[str, str]) -> str:
    """The workers of the slice that this TPU virtual machine belongs to, with commas; "" elsewhere."""
    # JAX leaves the server alone where this is set.
    if "TPU_SKIP_MDS_QUERY" in environment or importlib.util.find_spec("libtpu") is None:
        return ""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")  # as JAX does
    path = "computeMetadata/v1/instance/attributes/worker-network-endpoints"
    request = urllib.request.Request(f"http://{server}/{path}", headers={"Metadata-Flavor": "Google"})
    for _ in range(METADATA_TRIES):
        try:
            with urllib.request.urlopen(request, timeout=METADATA_S) as answer:
                return answer.read(1 << 16).decode(errors="replace")
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.NOT_FOUND:  # no slice
                return ""
        except (OSError, http.client.HTTPException):
            pass  # nobody there, or busy: asked again
    return ""


def initialize(
    choice: str, *, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Join the other processes, if there are any; before the first use of a device.

    Args:
        choice: "auto", if a launcher says so or the flags do; "on", whatever JAX finds; "off", never.
        coordinator: HOST:PORT of process 0.
        num_processes, process_id: how many there are, and which one this is.

    Raises:
        UserError: flags that do not go together, or no connection.
    """
    if choice not in CHOICES:
        raise unknown("--distributed", choice, CHOICES)
    explicit = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in explicit.items() if value is None]
    if len(missing) < 3 and (missing or choice == "off"):
        raise UserError(
            "--distributed=off does not go with --coordinator, --num_processes, --process_id"
            if choice == "off"
            else f"{', '.join(missing)} missing: --coordinator, --num_processes and --process_id go together"
        )
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--coordinator={coordinator} is not HOST:PORT")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: give 1 or more")
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} is not from 0 to {num_processes - 1}")
    found = launcher(os.environ) if choice != "off" and missing else None
    if choice == "off" or (choice == "auto" and missing and found is None):
        return
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    # jax raises several types: for an environment that names no cluster, a bad address, no connection.
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the processes did not come together ({one_line(error)}); give --coordinator, "
            "--num_processes and --process_id, or --distributed=off for one process"
        ) from error
    log.info(
        "process %d of %d%s",
        jax.process_index(),
        jax.process_count(),
        f", started by {found}" if found and missing else "",
    )
    if not is_main():
        log.setLevel(logging.ERROR)


def is_main() -> bool:
    """Whether this process is the first one, the only one that writes files and shows progress."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return when all processes have arrived; `name` identifies the barrier."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"jvdm {name}")


def least(value: int) -> int:
    """The smallest of all processes' values."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(np.min(multihost_utils.process_allgather(np.array(value, np.int32))))


def of_main(value: int) -> int:
    """The first process's value, in all of them."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.array(value, np.int32)))


def check_agreement(given: Mapping[str, object]) -> None:
    """Refuse to start if the processes were not given the same things.

    Args:
        given: names, such as flags, with their values.

    Raises:
        UserError: in every process; where something differs from what process 0 has, naming it.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mine = json.dumps({name: repr(value) for name, value in given.items()}, sort_keys=True).encode()
    length = int(np.max(multihost_utils.process_allgather(np.array(len(mine), np.int32))))
    padded = np.frombuffer(mine.ljust(length), np.uint8)
    texts = np.asarray(multihost_utils.process_allgather(padded)).reshape(jax.process_count(), length)
    all_given = [json.loads(text.tobytes()) for text in texts]
    first = all_given[0]
    for index, other in enumerate(all_given):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                values = f"{first.get(name)} in process 0 and {other.get(name)} in process {index}"
                raise UserError(
                    f"the processes were given different things: {name} is {values}; give all the same"
                )


def check_devices() -> None:
    """Make JAX find its devices.

    Raises:
        UserError: it finds none, such as with JAX_PLATFORMS=cuda and no GPU.
    """
    try:
        jax.devices()
    # JAX raises either, by platform and version.
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        of = f" of JAX_PLATFORMS={asked}; unset it, or install jax for this device" if asked else ""
        raise UserError(f"JAX finds no device{of} ({one_line(error) or type(error).__name__})") from error
