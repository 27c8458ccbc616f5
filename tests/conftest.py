import socketserver
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support


@pytest.fixture(scope="session", autouse=True)
def quick_stop() -> Iterator[None]:
    """The metrics port looks twice a second whether it shall close; a hundred servers later that is a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.01,))
        yield


@pytest.fixture
def sum_root(tmp_path: Path) -> Path:
    """A folder with one model, the running sum, which cannot have missing values."""
    return support.write_model(tmp_path / "models", support.running_sum())


@pytest.fixture
def lstm_root(tmp_path: Path) -> Path:
    """A folder with one model, the LSTM, which handles missing values."""
    return support.write_model(tmp_path / "models", support.lstm())
