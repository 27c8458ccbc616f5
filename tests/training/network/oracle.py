"""The layers once more, in float64 and NumPy, from their published equations alone. Imports nothing of ours.

Weights come as torch lays them out: gates one after the other along the first axis. x is (time, batch, inputs), a state
(batch, hidden); every function returns (time, batch, hidden) and the last state.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Function = Callable[[Doubles], Doubles]


def sigmoid(x: Doubles) -> Doubles:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


# The text of the ONNX operators LSTM, GRU and RNN, "Activation functions", with the default alpha of the operators
# Elu and LeakyRelu.
ACTIVATIONS: dict[str, Function] = {
    "tanh": lambda x: (1 - np.exp(-2 * x)) / (1 + np.exp(-2 * x)),
    "relu": lambda x: np.maximum(0, x),
    "sigmoid": sigmoid,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "elu": lambda x: np.where(x >= 0, x, 1.0 * (np.exp(x) - 1)),
    "leaky-relu": lambda x: np.where(x >= 0, x, 0.01 * x),
}


def lstm(
    x: Doubles,
    weights: list[Doubles],
    h: Doubles,
    c: Doubles,
    activation_fn: Function,
    peepholes: Doubles | None = None,
    output_sees: Literal["new", "previous"] = "new",
) -> tuple[Doubles, Doubles, Doubles]:
    """Long short-term memory: Hochreiter & Schmidhuber (1997), the forget gate of Gers, Schmidhuber & Cummins (2000).

    Gates i, f, g, o. Peepholes, (3 * hidden,) for i, f, o: Gers & Schmidhuber, Recurrent nets that time and count (2000). There,
    and in the text of ONNX's LSTM, o sees the new cell state; it is "previous" in the variant that reads all three alike.
    """
    w, r, input_bias, recurrent_bias = weights
    wi, wf, wg, wo = np.split(w, 4)
    ri, rf, rg, ro = np.split(r, 4)
    bi, bf, bg, bo = np.split(input_bias + recurrent_bias, 4)
    pi, pf, po = np.split(np.zeros(3 * h.shape[1]) if peepholes is None else peepholes, 3)
    outputs = []
    for now in x:
        i = sigmoid(now @ wi.T + h @ ri.T + pi * c + bi)
        f = sigmoid(now @ wf.T + h @ rf.T + pf * c + bf)
        g = activation_fn(now @ wg.T + h @ rg.T + bg)
        new = f * c + i * g
        o = sigmoid(now @ wo.T + h @ ro.T + po * (new if output_sees == "new" else c) + bo)
        c = new
        h = o * activation_fn(c)
        outputs.append(h)
    return np.stack(outputs), h, c


def gru(x: Doubles, weights: list[Doubles], h: Doubles, activation_fn: Function) -> tuple[Doubles, Doubles]:
    """Gated recurrent unit: Cho et al. (2014), with the reset gate after the recurrent weights.

    So it is in torch's GRU and in ONNX's with linear_before_reset = 1. Gates r, z, n.
    """
    w, r, input_bias, recurrent_bias = weights
    wr, wz, wn = np.split(w, 3)
    rr, rz, rn = np.split(r, 3)
    ir, iz, in_ = np.split(input_bias, 3)
    hr, hz, hn = np.split(recurrent_bias, 3)
    outputs = []
    for now in x:
        reset = sigmoid(now @ wr.T + ir + h @ rr.T + hr)
        update = sigmoid(now @ wz.T + iz + h @ rz.T + hz)
        candidate = activation_fn(now @ wn.T + in_ + reset * (h @ rn.T + hn))
        h = (1 - update) * candidate + update * h
        outputs.append(h)
    return np.stack(outputs), h


def rnn(x: Doubles, weights: list[Doubles], h: Doubles, activation_fn: Function) -> tuple[Doubles, Doubles]:
    """Simple recurrent network: Elman (1990), and the text of ONNX's RNN."""
    w, r, input_bias, recurrent_bias = weights
    outputs = []
    for now in x:
        h = activation_fn(now @ w.T + input_bias + h @ r.T + recurrent_bias)
        outputs.append(h)
    return np.stack(outputs), h


def convolution(x: Doubles, weight: Doubles, bias: Doubles, past: Doubles) -> tuple[Doubles, Doubles]:
    """y[t] = relu(bias + sum over k of weight[:, :, k] x[t - (kernel - 1) + k]); weight (filters, inputs, kernel).

    The definition of a causal convolution (a correlation, as everywhere in machine learning), past before x.
    """
    kernel = weight.shape[2]
    seen = np.concatenate([past, x])
    outputs = [np.maximum(0, bias + sum(seen[t + k] @ weight[:, :, k].T for k in range(kernel))) for t in range(len(x))]
    return np.stack(outputs), seen[len(x) :]
