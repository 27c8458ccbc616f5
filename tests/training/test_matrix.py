"""Every cell with every task, and both with each way to tell of missing values: formulas, sequence, steps, graph and run folder agree.

All these go through formulas, sequence, steps and run folder. To export takes three seconds a network, so the graph is of fewer: each
kind of cell, each task, and each way to tell of missing values. They stand side by side in one graph, traced by the exporter that
`tidegate train` uses.
"""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.once import make_once
from tests.training.network import network_oracle
from tests.training.network.network_oracle import Recipe
from tidegate.training.data.scaler import Scaler
from tidegate.training.judging.graph import Graph
from tidegate.training.learning import run
from tidegate.training.network.cells import State
from tidegate.training.network.network import Network, build_network
from tidegate.training.publishing.export import build_graph, describe
from tidegate.training.settings import AlarmTimes, Architecture, Classify, Fit, Forecast, Source

STEPS, BATCH, FEATURES = 130, 2, 3  # an alarm needs 60 timesteps before it speaks
LEVEL_STEPS = 7

LAYERS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"cell": "gru"},
    "peephole": {"cell": "peephole"},
    "peephole-previous": {"cell": "peephole-previous"},
    "rnn": {"cell": "rnn", "changes": False},
    "lstm-relu": {"activation": "relu"},
    "convolution": {"kernel": 3, "filters": 4},
    "two-layers": {"layers": 2},
}
TASKS: dict[str, Forecast | Classify] = {
    "quantiles": Forecast(targets=(0, 2), horizons=(1, 3), quantiles=(0.05, 0.1, 0.5, 0.9)),
    "interval": Forecast(
        targets=(1, 0),
        horizons=(2, 5),
        quantiles=(0.1, 0.4, 0.9),
        links=("season", "last", "features"),
        season=4,
        coverage=0.8,
    ),
    "anomaly": Forecast(
        targets=(0, 2),
        horizons=(1, 3),
        quantiles=(0.5,),
        alarm_rate=0.05,
        alarm_times=AlarmTimes(memory=20.5, slow=4.5, warm_up=60),
    ),
    "classify": Classify(classes=("idle", "run", "walk")),
    "linear": Forecast(
        targets=(2, 0),
        horizons=(1, 3, 4),
        quantiles=(0.05, 0.1, 0.5, 0.9),
        links=("linear", "season"),
        season=4,
        lags=(1, 3, 6),
        follow=True,
        coverage=0.8,
    ),
}
# A mask is more columns of the first layer's input: it meets each kind of layer and each task, but not each pair of them.
CASES = [
    f"{layers}/{task}/{('mask', 'last')[(row + place) % 2]}"
    for (row, layers), (place, task) in product(enumerate(LAYERS), enumerate(TASKS))
]

# Heads and monitors see the output of the last layer, and no cells: all pairs of cells and tasks would show nothing more.
# What takes longest to trace, the regression and the alarm, is there once.
_TASKS_EXPORTED = ("quantiles", "anomaly", "linear", "interval", "classify", "quantiles", "quantiles", "classify")
EXPORTED = [
    CASES[row * len(TASKS) + list(TASKS).index(task)]
    for row, task in zip(range(len(LAYERS)), _TASKS_EXPORTED, strict=True)
]

every_case = pytest.mark.parametrize("case", CASES)

exported_case = pytest.mark.parametrize("case", EXPORTED)

# In units of the outputs, and as a share of a state beyond 1: float32 over 130 timesteps.
LIMIT = 2e-5
# Of an output far from its usual size, as a network with a ReLU may have, float32 has no more digits.
RELATIVE = 5e-6


def recipe_of(architecture: Architecture) -> Recipe:
    """The oracle's words for an architecture."""
    task = architecture.task
    fields = (
        {}
        if isinstance(task, Classify)
        else task.model_dump(exclude={"kind"}) | {"pair": (1, 3) if len(task.quantiles) == 4 else (0, 2)}
    )
    if fields.get("alarm_times"):
        fields["alarm_times"] = tuple(fields["alarm_times"].values())
    return Recipe(
        cell=architecture.cell,
        activation=architecture.activation,
        layers=architecture.layers,
        kernel=architecture.kernel,
        changes=architecture.changes,
        masked=architecture.missing == "mask",
        level_steps=architecture.level_steps,
        **fields,
    )


def make_network(case: str) -> Network:
    """A network none of whose weights and buffers has its starting value."""
    layers, task, missing = case.split("/")
    rng = np.random.default_rng([list(LAYERS).index(layers), list(TASKS).index(task), missing == "last"])
    mean, std = np.float32([20, -3, 0.5]), np.float32([4, 0.5, 2])
    architecture = Architecture(
        features=FEATURES,
        hidden=8,
        task=TASKS[task],
        missing=missing,
        level_steps=LEVEL_STEPS if task in ("linear", "classify") else None,
        **LAYERS[layers],
    )
    scaler = Scaler(mean, std, mean - std, mean + std, std * np.float32([0.5, 1.5, 1]), ())
    network = build_network(architecture, scaler, seed=0).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.from_numpy(rng.uniform(-0.5, 0.5, weight.shape)))
        if not isinstance(architecture.task, Classify):
            network.head.naive.copy_(torch.from_numpy(rng.uniform(0.2, 1.2, network.head.shape)))
        if task == "linear":
            network.head.kept.copy_(torch.from_numpy(rng.uniform(0.0, 1.0, network.head.shape)))
        if network.level:
            network.level.spread.copy_(torch.tensor([0.7, 0.0, 1.3]))  # the second feature has no level
        for monitor in network.monitors:
            for name, buffer in monitor.state_dict().items():
                if name != "tail":
                    buffer.add_(torch.from_numpy(rng.uniform(0.0, 0.2, buffer.shape)))
        if task == "anomaly":
            network.monitors[0].start.fill_(2.0)  # so that there are alarms, and not only those
            network.monitors[0].fitted.fill_(20.0)  # so that the step size changes on the way
    return network


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    """All of them; leave them as they are."""
    return {case: make_network(case) for case in CASES}


@pytest.fixture(scope="module")
def rows() -> Any:
    """(time, batch, features) raw: with holes, values that stand still, one long silence, and a few wild ones."""
    rng = np.random.default_rng(7)
    values = np.float32([20, -3, 0.5]) + np.float32([4, 0.5, 2]) * rng.standard_normal(
        (STEPS, BATCH, FEATURES), np.float32
    )
    values[100:104] = values[100]
    values[[108, 120], [0, 1]] += np.float32([60, 5, 30])
    values[rng.random(values.shape) < 0.15] = np.nan
    values[0] = np.nan
    values[40:52, :, 0] = np.nan
    return values


class Together(nn.Module):
    """One step of many networks beside each other; to the exporter it is a network."""

    def __init__(self, networks: dict[str, Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks.values())
        self.architecture = next(iter(networks.values())).architecture  # its number of features
        self.state_names = [f"{number}_{name}" for number, name in self._names("state_names")]
        self.output_names = [f"{number}_{name}" for number, name in self._names("output_names")]

    def _names(self, of: str) -> list[tuple[int, str]]:
        return [(number, name) for number, network in enumerate(self.networks) for name in getattr(network, of)]

    def prepare_export(self) -> None:
        """Each network's own."""
        for network in self.networks:
            network.prepare_export()

    def initial_state(self, batch: int) -> State:
        """Those of all networks, one after the other."""
        return tuple(part for network in self.networks for part in network.initial_state(batch))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all networks, then the next states of all networks."""
        parts = iter(state)
        steps = [network.step(x, tuple(next(parts) for _ in network.state_names)) for network in self.networks]
        return *(part for outputs, _ in steps for part in outputs.values()), *(
            part for _, after in steps for part in after
        )


@pytest.fixture(scope="module")
def graph(
    networks: dict[str, Network], make_facts: Callable[[int], run.DataFacts], tmp_path_factory: pytest.TempPathFactory
) -> Graph:
    """Those to be exported in one graph, described as each would be alone."""
    chosen = {case: networks[case] for case in EXPORTED}
    described = [describe(network, make_facts(FEATURES), scores={}) for network in chosen.values()]
    outputs, state = (
        [{**part, **_prefixed(part, number)} for number, whole in enumerate(described) for part in whole[key]]
        for key in ("outputs", "state")
    )
    together: Any = Together(chosen)  # as far as the exporter asks, it is a network
    description = {**described[0], "outputs": outputs, "state": state}
    content = make_once(tmp_path_factory, "matrix", lambda: build_graph(together, description).SerializeToString())
    return Graph(content, "all networks")


def _prefixed(part: dict[str, Any], number: int) -> dict[str, str]:
    return {key: f"{number}_{part[key]}" for key in ("name", "next") if key in part}


@pytest.fixture(scope="module")
def replayed(graph: Graph, rows: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The outputs and the last state of all networks, the graph stepped with its state carried."""
    return graph.replay(rows)


@pytest.fixture(scope="module")
def sequences(networks: dict[str, Network], rows: Any) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The outputs and the last state of each network, as one sequence in torch."""
    results = {}
    with torch.no_grad():
        for case, network in networks.items():
            outputs, state = network.sequence(torch.from_numpy(rows), network.initial_state(BATCH))
            results[case] = by_name(network, outputs, state)
    return results


def by_name(network: Network, outputs: dict[str, Tensor], state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs and state as arrays by their names."""
    after = dict(zip(network.state_names, state, strict=True))
    return {name: part.numpy() for name, part in outputs.items()}, {name: part.numpy() for name, part in after.items()}


def assert_same(
    network: Network, got: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]], limit: float = LIMIT
) -> None:
    """Outputs and states have the same names in the same order, the same shapes, and are as good as equal."""
    assert [list(part) for part in got] == [list(part) for part in wanted]
    for name, part in wanted[0].items():
        np.testing.assert_allclose(
            got[0][name] / network.unit(name), part / network.unit(name), RELATIVE, limit, err_msg=name
        )
    for name, part in wanted[1].items():
        np.testing.assert_allclose(got[1][name], part, limit, limit, err_msg=name)


@every_case
def test_a_network_keeps_the_formulas(
    networks: dict[str, Network], sequences: dict[str, Any], rows: Any, case: str
) -> None:
    """The sequence says what guard, scaler, mask, cells, head and monitors say in float64, and leaves the same state."""
    network = networks[case]
    weights = {name: part.numpy().astype(np.float64) for name, part in network.state_dict().items()}
    wanted = network_oracle.run(recipe_of(network.architecture), weights, rows.astype(np.float64))
    assert_same(network, sequences[case], wanted)


@every_case
def test_steps_equal_the_sequence(
    networks: dict[str, Network], sequences: dict[str, Any], rows: Any, case: str
) -> None:
    """Timestep by timestep with the state carried it says the same."""
    network = networks[case]
    state, results = network.initial_state(BATCH), []
    with torch.no_grad():
        for now in torch.from_numpy(rows):
            outputs, state = network.step(now, state)
            results.append(outputs)
    outputs = {name: torch.stack([step[name] for step in results]) for name in network.output_names}
    assert_same(network, by_name(network, outputs, state), sequences[case])


@exported_case
def test_the_graph_equals_the_sequence(
    networks: dict[str, Network], sequences: dict[str, Any], replayed: tuple[Any, Any], case: str
) -> None:
    """So does the exported graph in onnxruntime."""
    network, number = networks[case], EXPORTED.index(case)
    got = (
        {name: replayed[0][f"{number}_{name}"] for name in network.output_names},
        {name: replayed[1][f"{number}_{name}"] for name in network.state_names},
    )
    assert_same(network, got, sequences[case])


@exported_case
def test_the_description_is_that_of_the_graph(networks: dict[str, Network], graph: Graph, case: str) -> None:
    """Names and shapes of outputs and states, in and out, are those of the traced graph."""
    network, number = networks[case], EXPORTED.index(case)
    shapes = {value.name: value.shape for value in [*graph.session.get_inputs(), *graph.session.get_outputs()]}
    for name in network.output_names:
        assert graph.output(f"{number}_{name}")["shape"] == shapes[f"{number}_{name}"]
    for name in network.state_names:
        pair = graph.state[f"{number}_{name}"]
        assert pair["shape"] == shapes[pair["name"]] == shapes[pair["next"]]


@every_case
def test_a_run_that_is_read_again_is_equal(
    networks: dict[str, Network],
    sequences: dict[str, Any],
    make_facts: Callable[[int], run.DataFacts],
    rows: Any,
    tmp_path: Path,
    case: str,
) -> None:
    """From the run folder alone comes a network with the same bits in all outputs and states."""
    outcome = run.Outcome(epochs=1, best_epoch=1, best_score=1.0, seconds=0.0, stopped="epochs", threads=1, torch="")
    record = run.Run(
        source=Source(),
        facts=make_facts(FEATURES),
        architecture=networks[case].architecture,
        fit=Fit(),
        outcome=outcome,
    )
    run.save(tmp_path, record, networks[case])
    again, network = run.load(tmp_path)
    assert again == record
    with torch.no_grad():
        outputs, state = network.sequence(torch.from_numpy(rows), network.initial_state(BATCH))
    for got, wanted in zip(by_name(network, outputs, state), sequences[case], strict=True):
        assert list(got) == list(wanted)
        assert all(np.array_equal(part, wanted[name]) for name, part in got.items())


def test_the_rows_try_everything(sequences: dict[str, Any], rows: Any) -> None:
    """Alarms come and go, intervals miss and hold: what is compared is not all of one kind."""
    for case in (case for case in CASES if "anomaly" in case):
        outputs, _ = sequences[case]
        assert 0 < outputs["alarm"][60:].mean() < 0.9
    for case in (case for case in CASES if "interval" in case):
        outputs, state = sequences[case]
        low, high = outputs["interval"][:-2, :, 0, 0].transpose(2, 0, 1)
        held = (low <= rows[2:, :, 1]) & (rows[2:, :, 1] <= high)
        assert 0 < held.mean() < 0.85
        assert np.abs(state["intervals"][:, -4:]).min() > 0
