"""Recurrent layers: what they compute, and that their two ways agree."""

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from training.cells import LSTM

Doubles = npt.NDArray[np.float64]

STEPS, BATCH, INPUTS, HIDDEN = 40, 5, 3, 6


def oracle(x: Doubles, w: Doubles, r: Doubles, b: Doubles, h: Doubles, c: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """An LSTM in float64 from the gate equations; w, r, b hold the gates i, f, g, o along their first axis.

    i = sigmoid(Wi x + Ri h + bi), f and o alike, g = tanh(Wg x + Rg h + bg); c' = f c + i g; h' = o tanh(c').
    """
    outputs = []
    for now in x:
        i, f, g, o = np.split(now @ w.T + h @ r.T + b, 4, axis=1)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs), h, c


@pytest.fixture
def layer() -> LSTM:
    """A layer whose every gate has weights and biases of its own."""
    torch.manual_seed(3)
    layer = LSTM(INPUTS, HIDDEN)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.uniform_(-0.8, 0.8)
    return layer.eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A sequence, h and c, none of them zero."""
    torch.manual_seed(4)
    return torch.randn(STEPS, BATCH, INPUTS), torch.randn(1, BATCH, HIDDEN), torch.randn(1, BATCH, HIDDEN)


def doubles(*tensors: torch.Tensor) -> list[Doubles]:
    """The same numbers in float64."""
    return [tensor.detach().numpy().astype(np.float64) for tensor in tensors]


def expected(layer: LSTM, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[Doubles, Doubles, Doubles]:
    """What the oracle says of the layer's weights."""
    w, r, input_bias, recurrent_bias = doubles(*layer.kernel.all_weights[0])
    return oracle(*doubles(x), w, r, input_bias + recurrent_bias, *doubles(h[0], c[0]))


def test_sequence_keeps_the_gate_equations(
    layer: LSTM, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    """The sequence and its last state are those of the gate equations in float64."""
    x, h, c = inputs
    y, (h_last, c_last) = layer.sequence(x, (h, c))
    for got, wanted in zip(doubles(y, h_last[0], c_last[0]), expected(layer, x, h, c), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_steps_equal_the_sequence(layer: LSTM, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Step by step with the state carried gives what the whole sequence gives."""
    x, *state = inputs
    wanted, wanted_state = layer.sequence(x, tuple(state))
    state = tuple(state)
    for now, then in zip(x, wanted, strict=True):
        y, state = layer.step(now, state)
        torch.testing.assert_close(y, then, atol=1e-6, rtol=0)
    torch.testing.assert_close(state, wanted_state, atol=1e-6, rtol=0)


def test_prepared_weights_are_those_of_the_onnx_operator(
    layer: LSTM, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    """ONNX's own LSTM operator with the prepared buffers computes the gate equations: order of gates, layout and biases."""
    x, h, c = inputs
    layer.prepare_export()
    weights = {"W": layer.onnx_w, "R": layer.onnx_r, "B": layer.onnx_b}
    node = helper.make_node("LSTM", ["X", "W", "R", "B", "", "h", "c"], ["Y", "h1", "c1"], hidden_size=HIDDEN)
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [node],
            "lstm",
            [
                value("X", TensorProto.FLOAT, x.shape),
                value("h", TensorProto.FLOAT, h.shape),
                value("c", TensorProto.FLOAT, c.shape),
            ],
            [
                value("Y", TensorProto.FLOAT, (STEPS, 1, BATCH, HIDDEN)),
                value("h1", TensorProto.FLOAT, h.shape),
                value("c1", TensorProto.FLOAT, c.shape),
            ],
            [numpy_helper.from_array(weight.numpy(), name) for name, weight in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 14)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, h_last, c_last = session.run(None, {"X": x.numpy(), "h": h.numpy(), "c": c.numpy()})
    for got, wanted in zip((y[:, 0], h_last[0], c_last[0]), expected(layer, x, h, c), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_new_layer_has_open_forget_gates() -> None:
    """The forget gates begin with a bias of 1 in all, so that a new layer remembers."""
    _, _, input_bias, recurrent_bias = LSTM(INPUTS, HIDDEN).kernel.all_weights[0]
    assert torch.equal((input_bias + recurrent_bias)[HIDDEN : 2 * HIDDEN], torch.ones(HIDDEN))
