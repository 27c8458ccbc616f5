"""A person's own module as a version on disk: what is written, what it computes, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tidegate.core.model import Model
from tidegate.training import Feature, Output, State, errors, export
from tidegate.training.judging.graph import Graph
from tidegate.training.published import evaluate_version
from tidegate.training.publishing.module import Description, Step
from tidegate.training.publishing.module_export import Exported
from tidegate.training.publishing.module_parity import check_module_parity, probe

ROOT = Path(__file__).parents[3]


class Plain(nn.Module):
    """An LSTM of two layers and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(2, 8, num_layers=2, dropout=0.5)
        self.head = nn.Linear(8, 2)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """(batch, 2) -> (batch, 2 horizons, 1 target)."""
        y, state = self.lstm(x.unsqueeze(0), state)
        return self.head(y[0]).unsqueeze(-1), state


class Counter(nn.Module):
    """The mean of what was seen so far and its number, without a weight; a missing value does not count."""

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """(batch, 1) -> two outputs by name, and the next sum and count."""
        total, count = state
        missing = torch.isnan(x)
        total = total + torch.where(missing, 0.0, x)
        count = count + (~missing).to(torch.int64)
        mean = total / count.clamp(min=1).float()
        return {"count": count, "mean": mean}, (total, count)


PLAIN: dict[str, Any] = {
    "name": "plain",
    "features": [Feature("flow", "m³/h", 0.0, 5.0), "heat"],
    "outputs": [Output("forecast", targets=["flow"], units=["m³/h"], horizons=[1, 6])],
    "state": [State("h", (2, "batch", 8)), State("c", (2, "batch", 8))],
}
COUNTER: dict[str, Any] = {
    "name": "counter",
    "features": ["flow"],
    "outputs": [Output("mean", targets=["flow"]), Output("count")],
    "state": [State("total", ("batch", 1), initial=3.0), State("seen", ("batch", 1), initial=[1], dtype="int64")],
}


class Feed(nn.Module):
    """A feed-forward network without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 3)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[()]]:
        """(batch, 1) -> the probabilities of three classes."""
        del state
        return torch.softmax(self.line(x), -1), ()


FEED: dict[str, Any] = {
    "name": "feed",
    "features": ["x1"],
    "outputs": [Output("probability", targets=["a", "b", "c"])],
    "task": "classify",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version of the plain network; leave it as it is."""
    models = tmp_path_factory.mktemp("models")
    return export(Plain(), **PLAIN, period_s=60, models=models).folder


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The plain network, compared with its graph on rows of which the second column is about 25; leave it as it is."""
    samples = np.array([[1.0, 20.0], [4.0, 30.0]])
    return export(Plain(), **PLAIN, samples=samples, models=tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version of the counter; leave it as it is."""
    return export(Counter(), **COUNTER, handles_missing=True, models=tmp_path_factory.mktemp("models")).folder


def model_of(folder: Path) -> Model:
    """The version as the server loads it."""
    return Model(folder.parent.name, folder.name, (folder / "model.onnx").read_bytes())


def test_the_server_steps_what_the_module_computes(plain: Path) -> None:
    """Two streams in a batch, their state carried, get what the module says; dropout is off."""
    network, model = Plain().eval(), model_of(plain)
    x = np.random.default_rng(0).normal(size=(50, 2, 2)).astype(np.float32)
    state, wanted = model.initial_state(2), (torch.zeros(2, 2, 8), torch.zeros(2, 2, 8))
    for now in x:
        (forecast,), state = model.step(now, state)
        with torch.no_grad():
            expected, wanted = network.step(torch.from_numpy(now), wanted)
        assert forecast == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_description_is_what_was_given(plain: Path) -> None:
    """Names, units, ranges, horizons and period reach whoever asks the server."""
    spec = model_of(plain).spec
    assert [(part.name, part.unit, part.low, part.high) for part in spec.features] == [
        ("flow", "m³/h", 0.0, 5.0),
        ("heat", "", None, None),
    ]
    (forecast,) = spec.outputs
    assert (forecast.shape, forecast.targets, forecast.units, forecast.horizons) == (
        (2, 1),
        ("flow",),
        ("m³/h",),
        (1, 6),
    )
    assert [(part.name, part.shape, part.batch_axis) for part in spec.state] == [("h", (2, 8), 1), ("c", (2, 8), 1)]
    assert (spec.task, spec.period_s, spec.handles_missing) == ("forecast", 60, False)


def test_a_version_holds_graph_and_card(plain: Path) -> None:
    """The card has the parity and the fingerprint of the file; there is no report without a training."""
    assert sorted(path.name for path in plain.iterdir()) == ["card.json", "model.onnx"]
    card = json.loads((plain / "card.json").read_text("utf-8"))
    assert (card["name"], card["version"], card["fingerprint"]) == ("plain", 1, model_of(plain).spec.fingerprint)
    assert 0 < card["parity"]["outputs"] <= 1e-5
    assert card["parity"]["batches"] == [1, 7]


def test_the_graph_carries_low_versions(plain: Path) -> None:
    """As low as those of our own networks."""
    model = onnx.load(plain / "model.onnx")
    assert model.ir_version <= 8
    assert model.opset_import[0].version <= 17


def test_a_state_has_its_own_type_and_start(counter: Path) -> None:
    """A count of type int64 that begins at 1 goes on exactly; outputs may come by name, in any order; NaN is missing."""
    outputs, state = Graph.load(counter).replay(np.float32([5, np.nan, 7]).reshape(3, 1, 1))
    assert outputs["mean"].flatten().tolist() == [4.0, 4.0, 5.0]
    assert outputs["count"].flatten().tolist() == [2, 2, 3]
    assert state["seen"].dtype == np.int64
    spec = model_of(counter).spec
    assert [part.initial.tolist() for part in spec.state] == [[3.0], [1]]


def test_streams_that_end_early_leave_the_others_as_they_are(counter: Path) -> None:
    """A replay of segments of unequal length cuts the batch axis of each state tensor, wherever it is."""
    graph = Graph.load(counter)
    values = np.arange(6, dtype=np.float32).reshape(6, 1)
    together = graph.replay_segments(values, [(0, 2), (2, 6)])["mean"]
    alone = [graph.replay(values[first:end, None])[0]["mean"][:, 0] for first, end in ((0, 2), (2, 6))]
    assert np.array_equal(together, np.concatenate(alone))


def test_a_network_without_memory_needs_no_state(tmp_path: Path) -> None:
    """A feed-forward module is a model too."""
    folder = export(Feed(), **FEED, models=tmp_path).folder
    assert model_of(folder).spec.state == ()


def test_samples_give_the_ranges(sampled: Exported) -> None:
    """Features without a range get that of the samples."""
    assert [(part.low, part.high) for part in model_of(sampled.folder).spec.features] == [(0.0, 5.0), (20.0, 30.0)]


def test_a_gate_that_hardly_forgets_may_add_up_rounding(sampled: Exported) -> None:
    """The cell of an LSTM that sees raw values of 20 differs by a hundred times what a single step does, and passes."""
    assert sampled.parity.state > 1e-5
    assert sampled.parity.state <= sampled.parity.limit <= 1e-3


def test_an_exported_forecast_is_scored_beside_the_baselines(plain: Path, tmp_path: Path) -> None:
    """By `tidegate evaluate` with data, which a card of a training elsewhere does not name."""
    rows = np.random.default_rng(0).uniform(0, 5, (60, 2))
    times = np.datetime64("2024-01-01") + np.arange(60).astype("timedelta64[m]")
    lines = [f"{time},{flow:.3f},{heat:.3f}" for time, (flow, heat) in zip(times, rows, strict=True)]
    (tmp_path / "new.csv").write_text("\n".join(["time,flow,heat", *lines]))
    scores = evaluate_version(plain, data=str(tmp_path / "new.csv"), time=None, season=None)
    assert [(score.target, score.horizon, score.count) for score in scores.table] == [("flow", 1, 59), ("flow", 6, 54)]
    with pytest.raises(errors.ModelUnreadable, match="pass --data"):
        evaluate_version(plain, data=None, time=None, season=None)


def test_other_outputs_cannot_be_scored(counter: Path) -> None:
    """The error names them."""
    with pytest.raises(errors.ModelUnreadable, match=r"gives mean, count, expected an output 'forecast' or"):
        evaluate_version(counter, data="new.csv", time=None, season=None)


def test_the_module_itself_stays_as_it_was(tmp_path: Path) -> None:
    """It goes on in training mode and in its own precision."""
    network = Feed().double().train()
    export(network, **FEED, models=tmp_path)
    assert network.training
    assert network.line.weight.dtype == torch.float64


def test_versions_count_up_and_are_never_overwritten(plain: Path) -> None:
    """As those of a training."""
    with pytest.raises(errors.VersionExists, match=r"plain.1 exists already"):
        export(Plain(), **PLAIN, models=plain.parents[1], version=1)


def changed(step: Callable[..., Any], **parts: Any) -> nn.Module:
    """The plain network with another step, and with more attributes."""

    class Other(Plain):
        pass

    Other.step = step  # type: ignore[method-assign]
    other = Other()
    for name, part in parts.items():
        setattr(other, name, part)
    return other


def mixes_streams(self: Any, x: Tensor, state: Any) -> Any:
    """Centres on the mean of the batch."""
    return Plain.step(self, x - x.mean(0), state)


def decides(self: Any, x: Tensor, state: Any) -> Any:
    """Looks at a value."""
    return Plain.step(self, -x if x[0, 0] > 0.5 else x, state)


def keeps_state(self: Any, x: Tensor, state: Any) -> Any:
    """Keeps what it saw last as an attribute."""
    before, self.before = self.before, x
    return Plain.step(self, x - before, state)


def divides(self: Any, x: Tensor, state: Any) -> Any:
    """Gives infinity where x is 0, as in a switch that is off."""
    outputs, after = Plain.step(self, x, state)
    return outputs + 1 / x[:, :1, None].round(), after


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(2, 2), r"module: got Linear, expected a torch.nn.Module with a method step"),
        (
            changed(lambda self, x, state: self.head(x)),
            r"step: Other fails on x \[3, 2\] and state h \[2, 3, 8\].*shapes",
        ),
        (changed(lambda self, x, state: x), r"step: Other gives Tensor, expected the pair"),
        (
            changed(lambda self, x, state: (Plain.step(self, x, state)[0], state[0])),
            r"gives Tensor as next_state, expected 2: h, c",
        ),
        (
            changed(lambda self, x, state: ({"other": x}, state)),
            r"gives a dictionary of other as outputs, expected 1: forecast",
        ),
        (
            changed(lambda self, x, state: (x, state)),
            r"gives 'forecast' as \[3, 2\] for a batch of 3, expected \[3, 2, 1\]: the batch, then 2 horizons, 1 targets",
        ),
        (
            changed(lambda self, x, state: (Plain.step(self, x, state)[0], (state[0], state[1][:, :1]))),
            r"gives 'c' as \[2, 1, 8\] float32, expected \[2, 3, 8\] float32 as it came in",
        ),
        (changed(Plain.step, last=torch.ones(1, requires_grad=True) * 2), r"Other cannot be copied: .*as an attribute"),
        (changed(decides), r"torch cannot export Other.step: .*without Python decisions"),
        (changed(mixes_streams), r"gives a stream other values of 'forecast' in a batch than alone"),
        (changed(divides), r"gives NaN or infinity in 'forecast'; let no missing value"),
    ],
    ids=["no step", "fails", "no pair", "state", "names", "axes", "next", "copy", "decides", "mixes", "infinite"],
)
def test_a_module_that_does_something_else_is_refused(module: nn.Module, message: str, tmp_path: Path) -> None:
    """One line says what it does and what was expected; nothing is written."""
    with pytest.raises(errors.ModuleError, match=message):
        export(module, **PLAIN, models=tmp_path)
    assert not list(tmp_path.iterdir())


def test_state_beside_the_state_is_refused(tmp_path: Path) -> None:
    """A module that remembers in an attribute would forget in the server."""
    with pytest.raises((errors.ModuleError, errors.ParityError)):
        export(changed(keeps_state, before=torch.zeros(1, 2)), **PLAIN, models=tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_values_must_be_handled(tmp_path: Path) -> None:
    """A module whose state a missing value spoils cannot say that it handles them."""
    with pytest.raises(errors.ModuleError, match=r"NaN or infinity in 'forecast'.*leave handles_missing out"):
        export(Plain(), **PLAIN, handles_missing=True, models=tmp_path)


def test_a_graph_that_differs_from_its_module_is_refused(plain: Path) -> None:
    """One weight that is a thousandth off does not pass the gate."""
    description = Description((Feature("flow"), Feature("heat")), tuple(PLAIN["outputs"]), tuple(PLAIN["state"]))
    step = Step(Plain(), description)
    model = onnx.load(plain / "model.onnx")
    tensor = next(part for part in model.graph.initializer if "head.weight" in part.name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[np.abs(values).argmax()] *= 1.001
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(errors.ParityError, match=r"forecast of the graph and of the network differ by .*nothing was"):
        check_module_parity(step, model, probe(step, None, missing=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "my model"}, r"name: got 'my model', expected letters"),
        ({"features": []}, r"features, outputs: got none"),
        ({"features": ["flow", "flow"]}, r"features: got the name 'flow' 2 times"),
        ({"state": [State("h", (2, "batch", 8)), State("forecast", ("batch", 8))]}, r"got the name 'forecast' 2 times"),
        ({"state": [State("h", (2, 8))]}, r"state: 'h' has shape \(2, 8\), expected positive sizes and once the word"),
        ({"state": [State("h", ("batch", 8), dtype="float16")]}, r"state: 'h' has dtype 'float16', expected one of"),
        ({"state": [State("h", ("batch", 8), initial=[1, 2])]}, r"state: 'h' has 2 initial values, expected one, or 8"),
        ({"outputs": [Output("forecast", ["flow"], ["a", "b"])]}, r"'forecast' has 2 units for 1 targets"),
        ({"period_s": 0}, r"period_s: got 0, expected seconds above 0"),
        ({"samples": [[1.0, 2.0, 3.0]]}, r"samples: got shape \(1, 3\), expected \(rows, 2\)"),
        ({"samples": [[1.0, np.nan]]}, r"samples: got nan in row 0, column 1, expected a number; handles_missing=True"),
    ],
)
def test_a_description_that_cannot_be_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """It names what was given, what was got and what was expected."""
    with pytest.raises(errors.SettingsError, match=message):
        export(Plain(), **{**PLAIN, **change}, models=tmp_path)


def test_the_package_itself_loads_no_torch() -> None:
    """Whoever imports a part of it does not wait for torch; a name that is not there is an error as always."""
    code = (
        "import sys, tidegate.training as t; assert 'torch' not in sys.modules; assert not hasattr(t, 'nothing'); "
        "t.export; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
