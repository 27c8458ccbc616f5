"""The long lag: a symbol is remembered over 200 timesteps of distractors; learned, exported, and served across a crash."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fleet import ServerProcess
from tests.timeouts import TIMEOUT_S
from tests.training.recall import CLASSES, Task, accuracy, make_recall
from tidegate.client import Client
from tidegate.training.errors import SettingsError
from tidegate.training.judging.graph import Graph
from tidegate.training.learning.fit import FitResult
from tidegate.training.learning.run import DataFacts
from tidegate.training.network.network import Network
from tidegate.training.publishing.export import build_graph, describe
from tidegate.training.publishing.parity import check_parity
from tidegate.training.publishing.version import write_version
from tidegate.training.settings import Architecture, Classify, Fit, Shape

LAG = 200
# Gradients reach back over the whole lag. No values are hidden: the symbol is told once. The rest is what learns quickly.
LEARNING = Fit(
    epochs=6, lanes=16, chunk=LAG + 1, burn_in=0, hide=0.0, learning_rate=0.01, weight_decay=0.0, average=0.9
)
# Several times the lag: of a symbol that is held for as long, most is left at the recall.
MEMORY = 5 * LAG
CHANCE = 1 / len(CLASSES)


@pytest.fixture(scope="module")
def task() -> Task:
    """640 sequences that teach."""
    return Task.of(LAG, teach=640)


@pytest.fixture(scope="module")
def learned(task: Task) -> FitResult:
    """An LSTM that has learned it."""
    return task.learn(Shape(hidden=12, memory=MEMORY), LEARNING)


def test_the_lstm_learns_a_long_lag(learned: FitResult) -> None:
    """Trained with carried-state truncated BPTT, it names the symbol of nearly every new sequence after 200 distractors."""
    assert accuracy(learned.network, LAG) > 0.95


@pytest.mark.parametrize("cell", ["gru", "peephole"])
def test_gated_cells_learn_a_long_lag(task: Task, cell: str) -> None:
    """So do the other cells with gates."""
    assert accuracy(task.learn(Shape(cell=cell, hidden=12, memory=MEMORY), LEARNING).network, LAG) > 0.95


def test_a_cell_without_gates_does_not(task: Task) -> None:
    """The plain recurrent layer, with the same sequences, width and settings, is as good as a guess."""
    assert accuracy(task.learn(Shape(cell="rnn", hidden=12), LEARNING).network, LAG) == pytest.approx(CHANCE, abs=0.1)


def test_an_lstm_that_begins_forgetting_does_not(task: Task) -> None:
    """Without --memory a forget gate holds for some three timesteps, and no gradient reaches back: it is for long lags."""
    assert accuracy(task.learn(Shape(hidden=12), LEARNING).network, LAG) == pytest.approx(CHANCE, abs=0.1)


@pytest.mark.parametrize("cell", ["lstm", "gru", "peephole", "peephole-previous"])
def test_gates_begin_by_holding_the_state(task: Task, cell: str) -> None:
    """The biases of forget and update gates are spread from those of one timestep to those of `memory`, in each layer."""
    shape = Shape(cell=cell, hidden=500, layers=2, memory=1000)
    network = Network(Architecture(features=4, task=Classify(classes=CLASSES), **shape.model_dump()), task.scaler)
    for layer in network.cells:
        parts = 3 if cell == "gru" else 4
        bias = sum(part.detach() for part in layer.kernel.all_weights[0][2:]).chunk(parts)
        spans = bias[1].exp().numpy()  # an LSTM's gates are i, f, g, o and a GRU's r, z, n
        assert 1 <= spans.min() < 20
        assert 980 < spans.max() <= 999
        assert abs(np.median(spans) - 500) < 80
        if cell != "gru":
            np.testing.assert_array_equal(bias[0], -bias[1])


def test_a_cell_without_gates_cannot_hold_its_state(task: Task) -> None:
    """Asked to, it is refused with what to do."""
    with pytest.raises(SettingsError, match=r"memory: a layer of kind RNN has no gates.*take another cell"):
        task.learn(Shape(cell="rnn", memory=MEMORY), LEARNING)


@pytest.fixture(scope="module")
def version(learned: FitResult, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LSTM as a version in a folder of models, past the gate."""
    network = learned.network
    model = build_graph(network, describe(network, DataFacts.of(task.series, task.split, task.scaler), scores={}))
    check_parity(network, model)
    models = tmp_path_factory.mktemp("recall") / "models"
    return write_version(models, "recall", 1, model.SerializeToString(), {"name": "recall"}, "")


def test_the_graph_remembers(version: Path) -> None:
    """Stepped in onnxruntime with its state carried, the exported graph names the symbols of new sequences."""
    values, symbols = make_recall(200, LAG, seed=2)
    outputs, _ = Graph.load(version).replay(values)
    assert (outputs["probability"][-1].argmax(-1) == symbols).mean() > 0.95


async def test_a_served_stream_remembers_across_a_crash(version: Path, tmp_path: Path) -> None:
    """Four streams are told a symbol each, the server is killed half-way and started again: all are answered rightly.

    The client sends again what was not stored; the answers are the bits of one replay of the graph.
    """
    values, symbols = make_recall(4, LAG, seed=3)
    wanted, _ = Graph.load(version).replay(values)
    site = ServerProcess(version.parents[1], f"sqlite:///{tmp_path / 'state.db'}")
    half = asyncio.Barrier(5)
    again = asyncio.Event()

    async def init_long_memory(client: Client, number: int) -> list[Any]:
        answers = []
        async with client.open(f"stream-{number}") as stream:
            for now, row in enumerate(values[:, number]):
                if now == LAG // 2:
                    await half.wait()
                    await again.wait()
                answers.append((await stream.step(row))["probability"])
        return answers

    await site.start()
    try:
        async with asyncio.timeout(3 * TIMEOUT_S), Client(site.address) as client, asyncio.TaskGroup() as group:
            streams = [group.create_task(init_long_memory(client, number)) for number in range(4)]
            await half.wait()
            await site.kill()
            await site.start()
            again.set()
        assert site.metrics()["tidegate_state_lost_total"] == 0
    finally:
        await site.close()
    got = np.stack([stream.result() for stream in streams], axis=1)
    assert got[-1].argmax(-1).tolist() == symbols.tolist()
    assert len(set(symbols.tolist())) > 1
    np.testing.assert_array_equal(got, wanted["probability"])
