"""Published datasets: prepared from archives in their true formats, without TensorFlow or a network."""

import dataclasses
import errno
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import published_archives as archives

from jvdm.core.errors import UserError
from jvdm.data import archives as fetching
from jvdm.data import load, prepared
from jvdm.data.published import PREPARED_VERSION, PUBLISHED

NAMES = list(PUBLISHED)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Writes the small archives of a dataset, makes jvdm expect them, and returns their folder."""

    def place(name, **changes):
        folder = archives.write(name, tmp_path)
        monkeypatch.setitem(PUBLISHED, name, archives.small(name, folder, **changes))
        return folder

    return place


@pytest.fixture
def failure(tmp_path):
    """The one line with which loading fails; nothing is left half prepared."""

    def failure(name):
        with pytest.raises(UserError) as caught:
            load(name, data_dir=str(tmp_path))
        assert "\n" not in str(caught.value)
        folder = tmp_path / "jvdm_images" / name
        left = [p for p in folder.rglob("*") if p.is_file() and p.name != "metadata.json"]
        assert not left
        assert not list(tmp_path.rglob("*.partial"))
        return str(caught.value)

    return failure


@pytest.mark.parametrize("name", NAMES)
def test_prepare_and_read(name, place, tmp_path):
    place(name)
    data = load(name, data_dir=str(tmp_path))
    train, test = archives.images_of(name)
    np.testing.assert_array_equal(data.train, train)
    np.testing.assert_array_equal(data.test, test)
    assert isinstance(data.train, np.memmap)
    assert not data.train.flags.writeable
    assert (data.name, data.version, data.num_levels) == (name, PREPARED_VERSION, 256)
    assert data.data_shape == PUBLISHED[name].image_shape
    folder = tmp_path / "jvdm_images" / name / PREPARED_VERSION
    assert len(list(folder.glob("*.array_record*"))) == 2


def test_second_load_reads_the_cache_alone(place, tmp_path, monkeypatch):
    folder = place("cifar10")
    first = load("cifar10", data_dir=str(tmp_path))
    (folder / "cifar-10-binary.tar.gz").unlink()
    monkeypatch.setattr(prepared, "_prepare", lambda *_: pytest.fail("prepared again"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    again = load("cifar10")
    assert again.fingerprint("train") == first.fingerprint("train")


@pytest.mark.parametrize("damage", ["missing", "truncated", "shape", "text"])
def test_a_damaged_cache_is_decoded_again(damage, place, tmp_path):
    folder = place("mnist")
    load("mnist", data_dir=str(tmp_path))
    for archive in folder.iterdir():
        archive.unlink()  # the ArrayRecords are enough
    cache = tmp_path / "jvdm_images" / "mnist" / PREPARED_VERSION / "test.npy"
    whole = cache.read_bytes()
    if damage == "missing":
        cache.unlink()
    elif damage == "truncated":
        cache.write_bytes(whole[:-1])
    elif damage == "shape":
        np.save(cache, np.zeros((2, 28, 28, 1), np.uint8))
    else:
        cache.write_text("hello")
    data = load("mnist", data_dir=str(tmp_path))
    np.testing.assert_array_equal(data.test, archives.images_of("mnist")[1])
    assert cache.read_bytes() == whole


def load_elsewhere(root, *, before=""):
    """Run `load` in a separate process, with warnings as errors; return its exit status and output."""
    code = (
        "import sys, warnings; warnings.simplefilter('error'); from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from helpers import published_archives as archives\n"
        "from jvdm.data import load\n"
        "from jvdm.data.published import PUBLISHED\n"
        "from jvdm.core.errors import UserError\n"
        f"root = Path({str(root)!r})\n"
        "PUBLISHED['cifar10'] = archives.small('cifar10', root / 'downloads' / 'manual')\n"
        f"{before}\n"
        "try:\n"
        "    data = load('cifar10', data_dir=str(root))\n"
        "except UserError as error:\n"
        "    sys.exit(f'UserError: {error}')\n"
        "print(data.train.shape, 'tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)


def test_tensorflow_is_never_imported(tmp_path):
    archives.write("cifar10", tmp_path)
    process = load_elsewhere(tmp_path)
    assert process.communicate() == ("(10, 32, 32, 3) True False\n", "")
    assert process.returncode == 0


def test_processes_that_prepare_at_once_wait_for_each_other(tmp_path):
    archives.write("cifar10", tmp_path)
    processes = [load_elsewhere(tmp_path) for _ in range(3)]
    outputs = [process.communicate() for process in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], outputs
    # One of them prepared; the others found its arrays, or decoded nothing themselves.
    assert len(list((tmp_path / "jvdm_images" / "cifar10").iterdir())) == 1
    assert all(out.startswith("(10, 32, 32, 3)") and err == "" for out, err in outputs)


@pytest.mark.parametrize("prepared_before", [False, True])
def test_full_disk(prepared_before, place, tmp_path):
    place("cifar10")
    folder = tmp_path / "jvdm_images" / "cifar10" / PREPARED_VERSION
    if prepared_before:  # then it is the decoded array that does not fit
        load("cifar10", data_dir=str(tmp_path))
        (folder / "train.npy").unlink()
    process = load_elsewhere(
        tmp_path, before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))"
    )
    _, error = process.communicate()
    assert process.returncode == 1
    assert error.startswith(f"UserError: cannot prepare cifar10 under {tmp_path} (")
    assert "File too large" in error
    assert error.count("\n") == 1
    assert folder.exists() == prepared_before
    assert not list(tmp_path.rglob("*.partial"))
    data = load("cifar10", data_dir=str(tmp_path))  # once there is room
    np.testing.assert_array_equal(data.train, archives.images_of("cifar10")[0])


def test_truncated_archive(place, failure, tmp_path):
    path = place("cifar10") / "cifar-10-binary.tar.gz"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    message = failure("cifar10")
    assert (
        f"{path} is truncated: 1000 bytes, not {size}; remove it and fetch https://www.cs.toronto" in message
    )
    path.unlink()
    place("cifar10")
    assert len(load("cifar10", data_dir=str(tmp_path)).train)


def test_wrong_checksum(place, failure, tmp_path):
    path = place("cifar10") / "cifar-10-binary.tar.gz"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    message = failure("cifar10")
    assert f"{path} has the checksum" in message
    assert PUBLISHED["cifar10"].train.archive.sha256 in message
    path.unlink()
    place("cifar10")
    assert len(load("cifar10", data_dir=str(tmp_path)).train)


def test_another_file(place, failure):
    path = place("cifar10") / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes() + b"more")
    assert f"{path} is another file" in failure("cifar10")


def test_wrong_number_of_images(place, failure, monkeypatch):
    place("cifar10")
    small = PUBLISHED["cifar10"]
    changed = dataclasses.replace(small.test, num_images=4)
    monkeypatch.setitem(PUBLISHED, "cifar10", dataclasses.replace(small, test=changed))
    assert "holds 3 test images, not 4" in failure("cifar10")


def test_missing_archive_without_network(place, failure, tmp_path):
    # Nothing listens on port 9 of this host.
    folder = place("cifar10", url="http://127.0.0.1:9/cifar-10-binary.tar.gz")
    (folder / "cifar-10-binary.tar.gz").unlink()
    message = failure("cifar10")
    assert "cannot download http://127.0.0.1:9/cifar-10-binary.tar.gz" in message
    assert "refused" in message
    assert f"put cifar-10-binary.tar.gz (sha256 {PUBLISHED['cifar10'].train.archive.sha256})" in message
    assert f"into {tmp_path}/downloads/manual, or give images of your own" in message


@pytest.mark.parametrize("name", ["imagenet32_old", "imagenet64"])
def test_missing_archive_that_nobody_serves(name, failure, tmp_path):
    message = failure(name)
    assert "is missing and no longer served at http://image-net.org/small/train_" in message
    assert message.endswith(f"into {tmp_path}/downloads/manual")


@pytest.fixture
def serve(tmp_path):
    """Serves a folder on a free port of this host."""
    servers = []

    def serve(folder, handler=http.server.SimpleHTTPRequestHandler):
        class Quiet(handler):
            def log_message(self, format, *args):
                pass

        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def served_cifar10(place, serve, tmp_path, monkeypatch, **options):
    place("cifar10").rename(tmp_path / "served")
    url = f"{serve(tmp_path / 'served', **options)}/cifar-10-binary.tar.gz"
    small = PUBLISHED["cifar10"]
    archive = dataclasses.replace(small.train.archive, url=url)
    splits = {s: dataclasses.replace(small.split(s), archive=archive) for s in ("train", "test")}
    monkeypatch.setitem(PUBLISHED, "cifar10", dataclasses.replace(small, **splits))
    return url


def test_download(place, serve, tmp_path, monkeypatch):
    served_cifar10(place, serve, tmp_path, monkeypatch)
    data = load("cifar10", data_dir=str(tmp_path))
    np.testing.assert_array_equal(data.train, archives.images_of("cifar10")[0])
    assert [p.name for p in (tmp_path / "downloads" / "manual").iterdir()] == ["cifar-10-binary.tar.gz"]


def test_download_of_a_wrong_file(place, serve, tmp_path, monkeypatch, failure):
    served_cifar10(place, serve, tmp_path, monkeypatch)
    (tmp_path / "served" / "cifar-10-binary.tar.gz").write_bytes(b"<html>moved</html>")
    assert "is truncated: 18 bytes" in failure("cifar10")
    assert not list((tmp_path / "downloads" / "manual").iterdir())


def test_download_that_is_not_there(place, serve, tmp_path, monkeypatch, failure):
    url = served_cifar10(place, serve, tmp_path, monkeypatch)
    (tmp_path / "served" / "cifar-10-binary.tar.gz").unlink()
    assert f"cannot download {url} (HTTP status 404)" in failure("cifar10")


def test_download_that_hangs(place, serve, tmp_path, monkeypatch, failure):
    release = threading.Event()

    class Stalling(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            release.wait(10)

    monkeypatch.setattr(fetching, "TIMEOUT_SECONDS", 0.3)
    url = served_cifar10(place, serve, tmp_path, monkeypatch, handler=Stalling)
    message = failure("cifar10")
    release.set()
    assert f"cannot download {url} (timed out)" in message


def test_data_dir_that_cannot_be_written(place, failure, monkeypatch):
    """As the system says it to a user; root could write anywhere."""
    place("mnist")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert "(Permission denied); free or change data_dir" in failure("mnist")


def test_data_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot prepare mnist under .*file \(.*\); free or change data_dir"):
        load("mnist", data_dir=str(tmp_path / "file"))


def test_damaged_array_records(place, tmp_path):
    place("mnist")
    load("mnist", data_dir=str(tmp_path))
    folder = tmp_path / "jvdm_images" / "mnist" / PREPARED_VERSION
    (folder / "test.npy").unlink()
    (record,) = folder.glob("*test.array_record*")
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot be read .*; remove that folder") as caught:
        load("mnist", data_dir=str(tmp_path))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    shutil.rmtree(folder)
    assert len(load("mnist", data_dir=str(tmp_path)).test)


@pytest.mark.parametrize("folder", ["a[1]", "b[0:2]", "c@2", "d*", "e\\f", "{g}", "h i", "50%", "ü"])
def test_odd_names_of_the_folder(place, tmp_path, folder):
    """ArrayRecord reads some of these as a part of a file, or as several files."""
    shutil.copytree(place("cifar10"), tmp_path / folder / "downloads" / "manual")
    for _ in range(2):
        found = load("cifar10", data_dir=str(tmp_path / folder))
        np.testing.assert_array_equal(found.test, archives.images_of("cifar10")[1])


def test_shape_and_levels_need_no_archive():
    from jvdm.data import data_spec

    assert data_spec("imagenet64") == ((64, 64, 3), 256)
    assert data_spec("mnist") == ((28, 28, 1), 256)
    assert data_spec("digits") == ((8, 8, 1), 17)
    with pytest.raises(UserError, match="has 256 levels, not 17"):
        data_spec("cifar10", num_levels=17)
