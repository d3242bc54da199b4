"""Reading a file of PyTorch, and what is said of a bad one."""

import pytest

from jvdm.core.errors import UserError
from jvdm.importers import torch_archive


@pytest.fixture
def read(tmp_path):
    """(Zip or bytes) -> what the file holds."""

    def read(content):
        path = tmp_path / "model.pt"
        path.write_bytes(content if isinstance(content, bytes) else content.data())
        return torch_archive.read(path)

    return read


@pytest.fixture
def error_of(read):
    """(Zip or bytes) -> the error's message, which is short and one line."""

    def error_of(content):
        with pytest.raises(UserError) as caught:
            read(content)
        message = str(caught.value)
        assert "model.pt" in message
        assert len(message.splitlines()) == 1
        assert len(message) < 600
        return message

    return error_of
