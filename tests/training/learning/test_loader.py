"""The batches of an epoch, and what is computed for many of them at once."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tidegate.training.data.scaler import fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import Split, split_by_time
from tidegate.training.learning import loader
from tidegate.training.learning.batches import plan_epoch
from tidegate.training.learning.fit import Trainer
from tidegate.training.learning.links import prepare_links
from tidegate.training.learning.loader import Batch
from tidegate.training.settings import Architecture, Fit, Forecast

TASK = Forecast(targets=(0, 2), horizons=(1, 6), quantiles=(0.1, 0.5, 0.9), links=("linear", "season"), season=24)
LANES, CHUNK = 4, 16


@pytest.fixture
def trainer(make_series: Callable[..., Series]) -> Trainer:
    """Of a network with a level, a convolution and two links, on a series with a gap, so that sequences begin within an epoch too."""
    series = make_series(1500, gap_at=433, missing=0.05)
    split = split_by_time(series, train=0.7, validation=0.15, horizon=6)
    scaler = fit_scaler(series, split.train)
    architecture = Architecture(features=3, hidden=4, level="on", kernel=3, task=TASK)
    given = prepare_links(series, split, scaler, architecture)
    return Trainer(series, split, scaler, given, Fit(epochs=1, lanes=LANES, chunk=CHUNK))


def outputs_of(trainer: Trainer, batches: list[Batch]) -> list[dict[str, Tensor]]:
    """The outputs of each batch, with the state carried from one to the next."""
    state, found = trainer.network.initial_state(LANES), []
    with torch.no_grad():
        for batch in batches:
            outputs, state = batch.run(trainer.network, state)
            found.append(outputs)
    return found


@pytest.mark.parametrize("new_streams", [True, False])
@pytest.mark.parametrize("longest", [LANES * CHUNK, 7 * LANES * CHUNK, 10**6])
def test_many_chunks_at_once_give_what_each_gives(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, longest: int, new_streams: bool
) -> None:
    """Where sequences begin in any chunk, with missing values, padding, and states that know the past."""
    monkeypatch.setattr(loader, "LINK_ROWS", longest)
    monkeypatch.setattr(loader, "BLOCK_ROWS", 12 * LANES * CHUNK)  # several blocks, whose state goes on
    plan = plan_epoch(
        trainer.segments, batch_size=LANES, chunk=CHUNK, burn_in=8, cold_share=0.4, rng=np.random.default_rng(3)
    )
    assert plan.reset[1:].any()
    together = list(trainer.loader.batches(plan, new_streams=new_streams))
    each = []
    for index, batch in enumerate(together):
        begins = plan.reset[index].any()
        reset = torch.from_numpy(plan.reset[index]) if begins else None
        warm = trainer.loader._warm_states(plan, index, new_streams=new_streams) if begins else ()
        each.append(Batch(batch.x, batch.targets, batch.known, reset, warm))
    assert len(together) == plan.chunks
    assert any(batch.warm for batch in each)
    for got, expected in zip(outputs_of(trainer, together), outputs_of(trainer, each), strict=True):
        for name, part in expected.items():
            torch.testing.assert_close(got[name], part, atol=2e-5, rtol=1e-4)


def test_a_gap_that_resets_the_state_is_left_to_the_network(make_series: Callable[..., Series]) -> None:
    """With elapsed time a state may be reset within a chunk, so nothing is computed ahead, and no chunk is left out."""
    series = make_series(600)
    split: Split = split_by_time(series, train=0.7, validation=0.15, horizon=6)
    scaler = fit_scaler(series, split.train)
    elapsed = {"feature": 1, "usual_s": 600.0, "reset_s": 3600.0}
    given = prepare_links(series, split, scaler, Architecture(features=3, hidden=4, task=TASK, elapsed=elapsed))
    trainer = Trainer(series, split, scaler, given, Fit(epochs=1, lanes=LANES, chunk=CHUNK))
    plan = plan_epoch(
        trainer.segments, batch_size=LANES, chunk=CHUNK, burn_in=8, cold_share=0.4, rng=np.random.default_rng(3)
    )
    batches = list(trainer.loader.batches(plan))
    assert len(batches) == plan.chunks
    assert all(batch.inputs is None for batch in batches)
