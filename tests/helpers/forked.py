"""main.py in processes that are forked from one that has imported everything, which takes a process 1.5 s.

`run` is in place of `subprocess.run`. What is forked has used no device yet, so that XLA and JAX start in the
child as they do in a separate process; and the child ends as an interpreter does that ran main.py. Programs
are compiled once for all of them, and for the tests (`quick.environment`).
"""

import atexit
import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # run by its path, so that the first folder of sys.path is this one
    sys.path[0] = str(ROOT / "tests")

from helpers import quick  # noqa: E402


def run(*arguments, timeout=300):
    """main.py with these arguments, on one device: a `subprocess.CompletedProcess` with text."""
    arguments = [str(a) for a in arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        server = _server()
        socket.send_fds(server, [json.dumps(arguments).encode()], [out.fileno(), err.fileno()])
        pid = int(server.recv(64))
        server.settimeout(timeout)
        try:
            status = int(server.recv(64))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            server.settimeout(None)
            server.recv(64)
            raise subprocess.TimeoutExpired(arguments, timeout) from None
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


@functools.cache
def _server():
    """The connection to a process that `serve`s, which ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.forked", str(theirs.fileno())],
        cwd=ROOT,
        env=quick.environment(
            PYTHONPATH=os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
            JAX_PLATFORMS="cpu",
        ),
        pass_fds=[theirs.fileno()],
    )
    theirs.close()

    def stop():
        ours.close()
        process.wait()

    atexit.register(stop)
    return ours


def _serve(connection):
    """Fork for each message; returns the arguments in the child, and None in the server at its end."""
    import gc
    import warnings

    import matplotlib.figure  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorboardX  # noqa: F401

    import jvdm.cli.commands
    import jvdm.core.preemption  # noqa: F401

    gc.freeze()  # the child's collector leaves alone what is here now
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if not message:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which a fork does not copy: those of numpy's BLAS
            pid = os.fork()
        if not pid:
            connection.close()
            for i, descriptor in enumerate(descriptors):
                os.dup2(descriptor, 1 + i)
                os.close(descriptor)
            return json.loads(message)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        arguments = _serve(connection)
    if arguments is not None:
        import runpy

        sys.argv = ["main.py", *arguments]
        runpy.run_path("main.py", run_name="__main__")
