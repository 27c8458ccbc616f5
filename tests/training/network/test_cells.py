"""Recurrent layers: what they compute, that their ways agree, and what their gradients are."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.once import make_once
from tests.training.network import oracle
from tidegate.training.errors import SettingsError
from tidegate.training.network.cells import (
    ACTIVATIONS,
    CELLS,
    LSTM,
    Cell,
    Convolution,
    Peephole,
    PeepholePrevious,
    State,
)

Layer = TypeVar("Layer", bound=Cell)

STEPS, BATCH, INPUTS, HIDDEN = 50, 5, 3, 6

EVERY = [(name, activation) for name, cell in CELLS.items() for activation in sorted(cell.activations)]
BY_HAND = [(name, activation) for name, activation in EVERY if "peephole" in name or activation not in ("tanh", "relu")]
# Through the exporter, which takes its time. A peephole's attributes are made as the LSTM's, and the nodes of the activations
# of peephole-previous as those of rnn, so these two go with one that has an alpha.
EXPORTED = [case for case in EVERY if "peephole" not in case[0] or case[1] in {"tanh", "leaky-relu"}]
LSTMS = [name for name, cell in CELLS.items() if issubclass(cell, LSTM)]
FUSED = {"lstm": "LSTM", "gru": "GRU", "peephole": "LSTM"}


def make_cell(name: str, activation: str = "tanh", *, inputs: int = INPUTS, hidden: int = HIDDEN) -> Cell:
    """A layer whose every gate has weights, biases and peepholes of its own."""
    torch.manual_seed(3)
    return randomise(CELLS[name](inputs, hidden, activation))


def make_convolution(kernel: int = 3) -> Convolution:
    """A convolution with weights of a good size."""
    torch.manual_seed(3)
    return randomise(Convolution(INPUTS, HIDDEN, kernel))


def randomise(layer: Layer) -> Layer:
    """Put other weights in; small enough that 50 steps of a layer without bounds stay small."""
    with torch.no_grad():
        for weight in layer.parameters():
            weight.uniform_(-0.5, 0.5)
    return layer.eval()


def make_inputs(layer: Cell, steps: int = STEPS, batch: int = BATCH) -> tuple[Tensor, State]:
    """A sequence and a state, neither of them zero, like the layer's weights."""
    torch.manual_seed(4)
    like = next(layer.parameters())
    x = 2 * torch.randn(steps, batch, layer.inputs, dtype=like.dtype)  # so that thresholds and bends are passed
    return x, tuple(torch.randn_like(part) for part in layer.initial_state(batch))


def numbers(tensor: Tensor) -> oracle.Doubles:
    """The same numbers in float64."""
    return tensor.detach().numpy().astype(np.float64)


def expected(name: str, layer: Cell, x: Tensor, state: State) -> list[oracle.Doubles]:
    """What the oracle says of the layer's weights: all outputs, then the last state without its first axis."""
    if isinstance(layer, Convolution):
        return list(oracle.convolution(numbers(x), numbers(layer.weight), numbers(layer.bias), numbers(state[0])))
    weights = [numbers(weight) for weight in layer.kernel.all_weights[0]]
    parts = [numbers(part[0]) for part in state]
    activation_fn = oracle.ACTIVATIONS[layer.activation]
    match name:
        case "lstm":
            return list(oracle.lstm(numbers(x), weights, *parts, activation_fn))
        case "peephole":
            return list(oracle.lstm(numbers(x), weights, *parts, activation_fn, numbers(layer.peepholes), "new"))
        case "peephole-previous":
            return list(oracle.lstm(numbers(x), weights, *parts, activation_fn, numbers(layer.peepholes), "previous"))
        case "gru":
            return list(oracle.gru(numbers(x), weights, *parts, activation_fn))
        case "rnn":
            return list(oracle.rnn(numbers(x), weights, *parts, activation_fn))
    raise AssertionError(f"the oracle has no {name}")


def run_steps(layer: Cell, x: Tensor, state: State) -> tuple[Tensor, State]:
    """All outputs and the last state, one timestep at a time."""
    outputs = []
    with torch.no_grad():
        for now in x:
            y, state = layer.step(now, state)
            outputs.append(y)
    return torch.stack(outputs), state


def assert_close(got: tuple[Tensor, State], wanted: tuple[Tensor, State]) -> None:
    """Outputs and last states are the same but for float32's rounding."""
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=2e-6)


every_cell = pytest.mark.parametrize(("name", "activation"), EVERY)
by_hand = pytest.mark.parametrize(("name", "activation"), BY_HAND)
each_kind = pytest.mark.parametrize("name", CELLS)


# What they compute.


@every_cell
def test_sequence_keeps_the_equations(name: str, activation: str) -> None:
    """The sequence and its last state are those of the published equations, with and without gradients."""
    layer = make_cell(name, activation)
    x, state = make_inputs(layer)
    wanted = expected(name, layer, x, state)
    with torch.no_grad():
        plain, plain_state = layer.sequence(x, state)
    traced, traced_state = layer.sequence(x, state)
    assert traced.requires_grad
    assert not plain.requires_grad
    for y, after in ((plain, plain_state), (traced, traced_state)):
        for got, want in zip([y, *(part[0] for part in after)], wanted, strict=True):
            np.testing.assert_allclose(numbers(got), want, atol=2e-6, rtol=2e-6)


def test_every_activation_is_one_of_its_own() -> None:
    """No two activations give the same outputs, so that none can be mistaken for another."""
    outputs = []
    for activation in ACTIVATIONS:
        layer = make_cell("lstm", activation)
        outputs.append(layer.sequence(*make_inputs(layer))[0])
    for index, one in enumerate(outputs):
        assert all((one - other).abs().max() > 1e-3 for other in outputs[:index])


@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_convolution_is_causal(kernel: int) -> None:
    """A convolution is a weighted sum of the present and the timesteps before it, those of the state among them."""
    layer = make_convolution(kernel)
    x, state = make_inputs(layer)
    y, (past,) = layer.sequence(x, state)
    wanted, wanted_past = expected("convolution", layer, x, state)
    np.testing.assert_allclose(numbers(y), wanted, atol=1e-6)
    np.testing.assert_array_equal(numbers(past), wanted_past)


def test_convolution_of_one_timestep_is_refused() -> None:
    """A kernel of 1 has no past to keep; the message says what to do."""
    with pytest.raises(SettingsError, match=r"kernel: got 1, expected at least 2 timesteps.*leave the convolution out"):
        Convolution(INPUTS, HIDDEN, 1)


@each_kind
def test_unknown_activation_is_refused(name: str) -> None:
    """The message says what was got and what there is."""
    with pytest.raises(SettingsError, match="activation: got 'swish', expected one of elu, leaky-relu,"):
        CELLS[name](INPUTS, HIDDEN, "swish")


def test_a_peephole_of_zero_is_no_peephole() -> None:
    """With peepholes at zero, as they begin, outputs and gradients of both kinds are those of torch's LSTM."""
    wanted: list[Tensor] = []
    for cell in (LSTM, Peephole, PeepholePrevious):
        torch.manual_seed(3)
        layer = cell(INPUTS, HIDDEN)
        x, state = make_inputs(layer)
        y, after = layer.sequence(x.requires_grad_(), state)
        (y.square().sum() + sum(part.sum() for part in after)).backward()
        got = [y, *after, x.grad, *(weight.grad for weight in layer.kernel.parameters())]
        wanted = wanted or got
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-5)  # sums over 50 steps and 5 rows


# Their ways agree.


@every_cell
def test_steps_equal_the_sequence(name: str, activation: str) -> None:
    """Step by step with the state carried gives what the whole sequence gives."""
    layer = make_cell(name, activation)
    x, state = make_inputs(layer)
    assert_close(run_steps(layer, x, state), layer.sequence(x, state))


def test_steps_of_a_convolution_equal_the_sequence() -> None:
    """Step by step with the past carried gives what the whole sequence gives."""
    layer = make_convolution()
    x, state = make_inputs(layer)
    assert_close(run_steps(layer, x, state), layer.sequence(x, state))


@pytest.mark.parametrize("cut", [1, 20])
@each_kind
def test_a_sequence_may_be_cut_anywhere(name: str, cut: int) -> None:
    """Two parts with the state carried give what the whole gives."""
    assert_cut_anywhere(make_cell(name), cut)


@pytest.mark.parametrize("cut", [1, 20])
def test_a_convolution_may_be_cut_anywhere(cut: int) -> None:
    """Two parts with the past carried give what the whole gives, also when a part is shorter than the kernel."""
    assert_cut_anywhere(make_convolution(4), cut)


def assert_cut_anywhere(layer: Cell, cut: int) -> None:
    """Two parts with the state carried give what the whole gives."""
    x, state = make_inputs(layer)
    first, carried = layer.sequence(x[:cut], state)
    second, after = layer.sequence(x[cut:], carried)
    assert_close((torch.cat([first, second]), after), layer.sequence(x, state))


@each_kind
def test_a_row_is_the_same_alone_and_in_a_batch(name: str) -> None:
    """No row sees another."""
    layer = make_cell(name)
    x, state = make_inputs(layer)
    y, after = layer.sequence(x, state)
    alone = layer.sequence(x[:, 2:3], tuple(part[:, 2:3] for part in state))
    assert_close(alone, (y[:, 2:3], tuple(part[:, 2:3] for part in after)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_kind
def test_a_fresh_state_is_zero_and_like_the_weights(name: str, dtype: torch.dtype) -> None:
    """A fresh state has one tensor a name, [1, batch, hidden], of the weights' type."""
    layer = make_cell(name).to(dtype)
    state = layer.initial_state(4)
    assert len(state) == len(layer.states)
    for part in state:
        assert part.shape == (1, 4, HIDDEN)
        assert part.dtype == dtype
        assert not part.any()


def test_a_fresh_past_is_zero() -> None:
    """The state of a convolution holds the timesteps before the present one, the batch as the last axis but one."""
    (past,) = make_convolution(4).initial_state(7)
    assert past.shape == (3, 7, INPUTS)
    assert not past.any()


# How they begin.


@pytest.mark.parametrize("name", LSTMS)
def test_a_new_layer_has_open_forget_gates(name: str) -> None:
    """The forget gates begin with a bias of 1 in all, so that a new layer remembers."""
    layer = CELLS[name](INPUTS, HIDDEN)
    _, _, input_bias, recurrent_bias = layer.kernel.all_weights[0]
    assert torch.equal((input_bias + recurrent_bias)[HIDDEN : 2 * HIDDEN], torch.ones(HIDDEN))


@pytest.mark.parametrize("make", [*CELLS.values(), lambda inputs, hidden: Convolution(inputs, hidden, 3)])
def test_the_seed_decides_the_weights(make: Callable[[int, int], Cell]) -> None:
    """The same seed gives the same weights, another seed others."""
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(nn.utils.parameters_to_vector(make(INPUTS, HIDDEN).parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# Gradients.


class InSequence(nn.Module):
    """`sequence()` where `forward()` is asked for."""

    def __init__(self, layer: Cell) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """All outputs and the last state in a row."""
        y, after = self.layer.sequence(x, state)
        return y, *after


def check_gradients(layer: Cell, *, fast: bool) -> None:
    """Compare the gradients of outputs and last state, by input, state and weights, with finite differences."""
    module = InSequence(layer.double())
    x, state = make_inputs(layer, steps=5, batch=2)
    names = [name for name, _ in module.named_parameters()]

    def run(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, others[len(state) :], strict=True))
        return torch.func.functional_call(module, weights, (x, *others[: len(state)]))

    inputs = [part.detach().requires_grad_() for part in (x, *state, *module.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=fast)


@each_kind
def test_gradients(name: str) -> None:
    """By input, state and every weight, each element is what finite differences say; native kernels are checked alike."""
    check_gradients(make_cell(name, hidden=3), fast=False)


@by_hand
def test_gradients_by_hand(name: str, activation: str) -> None:
    """Also with every activation that goes through a backward pass of ours, in random directions."""
    check_gradients(make_cell(name, activation), fast=True)


def test_gradients_of_a_convolution() -> None:
    """By input, past, weights and bias, the gradients are what finite differences say."""
    check_gradients(make_convolution(), fast=False)


@by_hand
def test_gradients_are_the_same_bits_again(name: str, activation: str) -> None:
    """The same numbers give the same gradients, and gradients left out do not change the others."""
    layer = make_cell(name, activation)
    x, state = make_inputs(layer)
    results = []
    for wanted in (True, True, False):
        layer.zero_grad()
        y, after = layer.sequence(x.detach().requires_grad_(wanted), state)
        (y.sum() + sum(part.sum() for part in after)).backward()
        results.append([weight.grad for weight in layer.parameters()])
    for again in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], again, strict=True))


@pytest.mark.parametrize(("name", "activation"), [("peephole", "tanh"), ("gru", "elu"), ("rnn", "elu")])
def test_a_second_derivative_is_refused(name: str, activation: str) -> None:
    """A backward pass by hand cannot be differentiated again, and says so instead of being wrong."""
    layer = make_cell(name, activation)
    x, state = make_inputs(layer)
    y, _ = layer.sequence(x.requires_grad_(), state)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Allocations(TorchDispatchMode):
    """Sees what is allocated: the sizes in bytes of all new pieces of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen.setdefault(result.untyped_storage().data_ptr(), result)  # held, so that no address comes twice
        return result

    def larger_than(self, size: int) -> list[int]:
        """The sizes of those pieces that hold more than so many bytes."""
        return [held for part in self.seen.values() if (held := part.untyped_storage().nbytes()) > size]


@pytest.mark.parametrize(("name", "activation"), [("peephole", "tanh"), ("peephole-previous", "tanh"), ("gru", "elu")])
def test_without_gradients_nothing_is_kept(name: str, activation: str) -> None:
    """Of the length of the sequence there are then only the inputs times their weights, and the outputs."""
    layer = make_cell(name, activation, inputs=1)
    x, state = make_inputs(layer, steps=1000, batch=1)
    timestep = 4 * HIDDEN  # bytes
    with Allocations() as allocations, torch.no_grad():
        layer.sequence(x, state)
    gates = 3 if name == "gru" else 4
    assert sorted(allocations.larger_than(500 * timestep)) == [1000 * timestep, 1000 * gates * timestep]


# What is exported.


class Together(nn.Module):
    """One step of many layers beside each other: an export takes long, so there is one for all."""

    def __init__(self, layers: Sequence[Cell]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def split(self, state: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Each layer's part of the state."""
        ends = np.cumsum([len(layer.states) for layer in self.layers])
        return [tuple(state[end - len(layer.states) : end]) for end, layer in zip(ends, self.layers, strict=True)]

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all layers, then the next states of all layers."""
        steps = [layer.step(x, part) for layer, part in zip(self.layers, self.split(state), strict=True)]
        return *(y for y, _ in steps), *(part for _, after in steps for part in after)


@pytest.fixture(scope="module")
def together() -> Together:
    """The cells to be exported, and last a convolution."""
    return Together([*(make_cell(name, activation) for name, activation in EXPORTED), make_convolution()]).eval()


def export_step(together: Together) -> onnx.ModelProto:
    """One step of all layers as a graph, traced with a batch of three."""
    for layer in together.layers:
        layer.prepare_export()
    state = [part for layer in together.layers for part in layer.initial_state(3)]
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            together,
            (torch.zeros(3, together.layers[0].inputs), *state),
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes={"x": {0: batch}, "state": tuple({1: batch} for _ in state)},
        )
    return program.model_proto


@pytest.fixture(scope="module")
def graph(together: Together, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """One step of all of them."""
    content = make_once(tmp_path_factory, "cells", lambda: export_step(together).SerializeToString())
    return onnx.load_from_string(content)


@pytest.fixture(scope="module")
def session(graph: onnx.ModelProto) -> Any:
    """The graph in onnxruntime, on one thread as in the server."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def stepped(together: Together, session: Any) -> list[tuple[oracle.Doubles, list[oracle.Doubles]]]:
    """For each layer: all outputs and the last state of 50 steps through onnxruntime, the state carried."""
    inputs = [make_inputs(layer) for layer in together.layers]
    x, state = inputs[0][0].numpy(), [part.numpy() for _, state in inputs for part in state]
    names = [value.name for value in session.get_inputs()]
    outputs = []
    for now in x:
        results = session.run(None, dict(zip(names, [now, *state], strict=True)))
        outputs.append(results[: len(inputs)])
        state = results[len(inputs) :]
    after = [list(part) for part in together.split(state)]
    return [(np.stack(y), last) for y, last in zip(zip(*outputs, strict=True), after, strict=True)]


@pytest.mark.parametrize("index", range(len(EXPORTED)), ids=["-".join(case) for case in EXPORTED])
def test_graph_keeps_the_equations(
    together: Together, stepped: list[tuple[oracle.Doubles, list[oracle.Doubles]]], index: int
) -> None:
    """50 steps of the exported graph are those of the published equations: order of gates, layout, biases, attributes."""
    layer = together.layers[index]
    wanted = expected(EXPORTED[index][0], layer, *make_inputs(layer))
    y, after = stepped[index]
    for got, want in zip([y, *(part[0] for part in after)], wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6, rtol=2e-6)


def test_graph_of_a_convolution(together: Together, stepped: list[tuple[oracle.Doubles, list[oracle.Doubles]]]) -> None:
    """50 steps of the exported convolution are its definition."""
    layer = together.layers[-1]
    y, (past,) = stepped[-1]
    wanted, wanted_past = expected("convolution", layer, *make_inputs(layer))
    np.testing.assert_allclose(y, wanted, atol=1e-6)
    np.testing.assert_array_equal(past, wanted_past)


@pytest.mark.parametrize("name", CELLS)
def test_graph_gives_a_row_the_same_bits_in_any_batch(together: Together, session: Any, name: str) -> None:
    """What a stream is answered does not depend on who else is asking: the server promises that."""
    x, _ = make_inputs(together.layers[0], steps=1, batch=16)
    state = [make_inputs(layer, batch=16)[1] for layer in together.layers]
    rows = [x[0].numpy(), *(part.numpy() for parts in state for part in parts)]
    names = [value.name for value in session.get_inputs()]
    output = session.get_outputs()[EXPORTED.index((name, "tanh"))].name

    def run(first: int, end: int) -> Any:
        return session.run([output], {key: row[..., first:end, :] for key, row in zip(names, rows, strict=True)})[0]

    whole = run(0, 16)
    for size in (1, 2, 5):
        for first in range(0, 16 - size, size):
            np.testing.assert_array_equal(run(first, first + size), whole[first : first + size])


def test_a_layer_is_one_fused_node(graph: onnx.ModelProto) -> None:
    """Each layer that has an operator is exactly one node; the others are one Gemm and what stands around it."""
    counts = Counter(node.op_type for node in graph.graph.node)
    layers = Counter(FUSED.get(name, "Gemm") for name, _ in EXPORTED)
    layers["Gemm"] += 1  # the convolution
    assert {kind: counts[kind] for kind in layers} == layers
    assert counts["MatMul"] == counts["Conv"] == counts["RNN"] == 0


def test_weights_are_not_rearranged_in_the_graph() -> None:
    """Weights go straight into the node that computes with them.

    The layers are wide: the exporter folds what is done to a constant of up to 8192 numbers, and would hide it.
    """
    layers = [make_cell(name, inputs=96, hidden=96) for name in CELLS]
    graph = export_step(Together([*layers, Convolution(96, 96, 2)]).eval()).graph
    weights = {value.name: value for value in graph.initializer if np.prod(value.dims) > 8192}
    readers = Counter(node.op_type for node in graph.node for _ in weights.keys() & node.input)
    assert readers == {"LSTM": 4, "GRU": 2, "Gemm": 3}  # W and R each, or both in one


def test_the_batch_alone_is_symbolic(graph: onnx.ModelProto) -> None:
    """Each input and output has the batch as its only dimension that is not fixed, the last but one."""
    for value in [*graph.graph.input, *graph.graph.output]:
        *_, batch, width = value.type.tensor_type.shape.dim
        symbolic = [dimension.dim_param for dimension in value.type.tensor_type.shape.dim if dimension.dim_param]
        assert symbolic == [batch.dim_param] == ["batch"]
        assert width.dim_value


@pytest.mark.parametrize("name", CELLS)
def test_prepared_weights_follow_the_layer(name: str) -> None:
    """Preparing again takes up changed weights; what was prepared is not saved with the layer."""
    layer = make_cell(name)
    saved = set(layer.state_dict())
    layer.prepare_export()
    before = layer.onnx_w.clone()
    assert set(layer.state_dict()) == saved
    with torch.no_grad():
        layer.kernel.weight_ih_l0.mul_(2)
    assert torch.equal(layer.onnx_w, before)
    layer.prepare_export()
    assert not torch.equal(layer.onnx_w, before)
