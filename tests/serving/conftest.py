from collections.abc import Iterator

import pytest

from tests.graphs import lstm, write_model
from tests.servers import Process, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server of the LSTM, for the client commands."""
    root = write_model(tmp_path_factory.mktemp("models"), lstm(), "lake", "3")
    with serve(root) as process:
        yield process
