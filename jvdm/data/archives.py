"""Archives of published datasets: found where the user put them or downloaded, always verified."""

import dataclasses
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from jvdm.core.errors import UserError

TIMEOUT_SECONDS = 15
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """One published file.

    Attributes:
        url: where it is, or was, served.
        sha256: of the whole file, in hex.
        size: of the file, in bytes.
        served: False where the address is dead, so that only a copy put by hand can be used.
    """

    url: str
    sha256: str
    size: int
    served: bool = True

    @property
    def file_name(self) -> str:
        """The name the file must have on disk."""
        return self.url.rsplit("/", 1)[-1]


def fetch(archive: Archive, folder: Path) -> Path:
    """The verified archive in `folder`, downloaded there if it is missing.

    Args:
        archive: which file.
        folder: where a user puts it by hand.

    Returns:
        Its path.

    Raises:
        UserError: it is neither there nor to be had, or it is not the file it should be.
    """
    path = folder / archive.file_name
    if path.is_file():
        verify(archive, path)
        return path
    if not archive.served:
        raise UserError(
            f"{archive.file_name} is missing and no longer served at {archive.url}; put a copy "
            f"(sha256 {archive.sha256}) into {folder}"
        )
    partial = folder / f"{archive.file_name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(archive, partial, folder)
        verify(archive, partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); free or change data_dir"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def verify(archive: Archive, path: Path) -> None:
    """Compare the size and the SHA-256 of a file with those published.

    Raises:
        UserError: one of them differs.
    """
    size = path.stat().st_size
    if size != archive.size:
        what = "is truncated" if size < archive.size else "is another file"
        raise UserError(
            f"{path} {what}: {size} bytes, not {archive.size}; remove it and fetch {archive.url} again"
        )
    digest = hashlib.sha256()
    with path.open("rb") as file, progress(size, f"verifying {archive.file_name}", unit="B") as bar:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != archive.sha256:
        raise UserError(
            f"{path} has the checksum (sha256) {digest.hexdigest()}, not {archive.sha256}; remove it and "
            f"fetch {archive.url} again"
        )


def progress(total: int, what: str, *, unit: str) -> Any:
    """A progress bar with rate and time left; short work does not show it."""
    interval = 0.5 if sys.stderr.isatty() else 30  # seconds; a log wants a line now and then
    scale = unit == "B"
    from tqdm import tqdm

    return tqdm(
        total=total, desc=what, unit=unit, unit_scale=scale, delay=2, mininterval=interval, leave=False
    )


def _download(archive: Archive, path: Path, folder: Path) -> None:
    try:
        with (
            _request(archive.url) as response,
            path.open("wb") as file,
            progress(archive.size, f"downloading {archive.file_name}", unit="B") as bar,
        ):
            while chunk := _receive(response):
                file.write(chunk)
                bar.update(len(chunk))
    except _NetworkError as error:
        raise UserError(
            f"cannot download {archive.url} ({error}); put {archive.file_name} "
            f"(sha256 {archive.sha256}) into {folder}, or give images of your own: "
            "--config.data.source=npz:FILE"
        ) from error


class _NetworkError(Exception):
    """The network failed, not the disk, whose errors are OSErrors as well."""


def _request(url: str):
    try:
        return urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise _NetworkError(f"HTTP status {error.code}") from error
    except urllib.error.URLError as error:
        raise _NetworkError(error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(error) from error


def _receive(response) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(error) from error
