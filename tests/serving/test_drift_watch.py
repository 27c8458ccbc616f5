"""A server reports how far what its models get has moved from their training."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.graphs import running_sum, with_moments, write_model
from tests.servers import address_of, run_server, scrape
from tidegate.client import Client
from tidegate.runtime import drift_watch


@pytest.mark.parametrize("rows", [1, 8], ids=["single timesteps", "batches"])
async def test_moved_inputs_and_errors_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """All rows are 14, with 10 and 2 in training: two standard deviations, no spread, errors of 14."""
    monkeypatch.setattr(drift_watch, "SAMPLE_SECONDS", 0.001)
    root = write_model(tmp_path, with_moments())
    async with run_server(root) as server, Client(address_of(server)) as client, client.block(rows) as block:
        while math.isnan((await scrape(server))("tidegate_input_shift", feature="t")):
            for _ in range(20):
                await block.step(np.full((rows, 1), 14.0, np.float32))
        metrics = await scrape(server)
    assert metrics("tidegate_input_shift", model="toy", version="1", feature="t") == pytest.approx(2.0)
    assert metrics("tidegate_input_spread", feature="t") == pytest.approx(0.0, abs=1e-6)
    assert metrics("tidegate_error_spread", target="t") == pytest.approx(14.0)


async def test_a_row_is_counted_once(tmp_path: Path) -> None:
    """A stream that sends a row each ten minutes is not sampled a thousand times for it."""
    root = write_model(tmp_path, with_moments())
    async with run_server(root) as server, Client(address_of(server)) as client, client.open() as stream:
        (served,) = server.repository
        assert served.drift is not None
        for _ in range(20):
            await stream.step([14.0])
            for _ in range(10):
                served.drift.sample()
        assert np.isnan(served.drift.drift.input_shift()).all()  # fewer than 30 rows


async def test_batches_with_missing_values_count_too(tmp_path: Path) -> None:
    """A sensor that fails now and then hides no drift of the others."""
    root = write_model(tmp_path, with_moments(handles_missing=True))
    x = np.full((64, 1), 14.0, np.float32)
    x[0] = np.nan
    async with (
        run_server(root, batch_max=64) as server,
        Client(address_of(server)) as client,
        client.block(64) as block,
    ):
        (served,) = server.repository
        assert served.drift is not None
        await block.step(x)
        served.drift.sample()
        assert served.drift.drift.input_shift() == pytest.approx(2.0)


async def test_a_model_without_moments_has_no_such_metrics(tmp_path: Path) -> None:
    """A foreign graph says nothing of its training."""
    async with run_server(write_model(tmp_path, running_sum())) as server:
        text = (await scrape(server)).text
    assert "tidegate_input" not in text
