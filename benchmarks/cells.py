"""Measures the training cost of each cell against torch's LSTM: forward and backward over one chunk, on one thread.

The exit code is 1 when a cell without a torch kernel costs more than the goal.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from machine import load_average
from rounds import Results, Sample, interleave

from tidegate.training.network.cells import CELLS, Cell, Convolution, Peephole

BASE = "nn.LSTM"
LOOP = "peephole, in a loop"
GOAL = 3.0  # times nn.LSTM
# (batch, time, inputs, hidden): a wide batch, and what `tidegate train` does by default on 13 sensors and a clock
SIZES = ((32, 64, 8, 64), (16, 24, 27, 64))
# What must reach the goal; the other rows are torch's kernels, and for comparison.
HELD = ("peephole", "peephole-previous", "lstm relu", "lstm softsign")
SHOWN = ("gru", "rnn", "gru relu", "rnn elu", "convolution")

Side = tuple[str, Callable[[], None]]


def make_layer(name: str, inputs: int, hidden: int) -> Cell:
    """Makes the layer of a row: `cell`, `cell activation` or `convolution`."""
    if name == "convolution":
        return Convolution(inputs, hidden, 3)
    cell, _, activation = name.partition(" ")
    return CELLS[cell](inputs, hidden, activation or "tanh")


def run_in_a_loop(layer: Peephole, x: torch.Tensor) -> torch.Tensor:
    """The peephole LSTM as a plain loop of differentiable operations. Returns all outputs."""
    w, r, input_bias, recurrent_bias = layer.kernel.all_weights[0]
    p_i, p_f, p_o = layer.peepholes.chunk(3)
    h, c = (part[0] for part in layer.initial_state(x.shape[1]))
    outputs = []
    for now in torch.nn.functional.linear(x, w, input_bias + recurrent_bias):
        i, f, g, o = (now + h @ r.t()).chunk(4, 1)
        c = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
        h = torch.sigmoid(o + p_o * c) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def make_sides(size: Sequence[int]) -> list[Side]:
    """Returns the name of each row and its function: forward and backward, with gradients for all weights and the input."""
    batch, steps, inputs, hidden = size
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    kernel = torch.nn.LSTM(inputs, hidden)

    def base() -> None:
        y, _ = kernel(x, (torch.zeros(1, batch, hidden), torch.zeros(1, batch, hidden)))
        y.sum().backward()

    peephole = Peephole(inputs, hidden)

    def loop() -> None:
        run_in_a_loop(peephole, x).sum().backward()

    def side(layer: Cell) -> Callable[[], None]:
        def run() -> None:
            y, _ = layer.sequence(x, layer.initial_state(batch))
            y.sum().backward()

        return run

    rows = [(name, side(make_layer(name, inputs, hidden))) for name in (*HELD, *SHOWN)]
    return [(BASE, base), *rows, (LOOP, loop)]


def measure(results: Results, size: Sequence[int], rounds: int, repeats: int) -> str:
    """Measure all rows of a size in turn. Returns the name of the case."""
    case = "batch {}, time {}, inputs {}, hidden {}".format(*size)
    sides = make_sides(size)
    for _, run in sides:
        run()  # the first one allocates
    for number, (name, run) in interleave(rounds, sides):
        begun = time.perf_counter()
        for _ in range(repeats):
            run()
        spent_ms = (time.perf_counter() - begun) * 1e3 / repeats
        results.add(Sample(case, number, name, load_average(), {"ms": spent_ms}))
    return case


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each size. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5, help="runs of a row in a round")
    parser.add_argument("--quick", action="store_true", help="few rounds: only check that it runs and is roughly right")
    arguments = parser.parse_args(argv)
    rounds, repeats = (5, 2) if arguments.quick else (arguments.rounds, arguments.repeats)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results, missed = Results(), []
    for size in SIZES:
        case = measure(results, size, rounds, repeats)
        print(f"\n{case}: forward and backward, median of {rounds} rounds\n")
        print("| cell | ms | times nn.LSTM |\n|---|---|---|")
        for name in (BASE, *HELD, *SHOWN, LOOP):
            ratio = results.ratio(case, name, BASE, "ms")
            assert ratio is not None  # every round has both
            print(f"| {name} | {results.median(case, name, 'ms'):.2f} | {ratio:.2f} |")
            if name in HELD and ratio > GOAL:
                missed.append(f"{name} at {case}: {ratio:.2f}, expected at most {GOAL:g}")
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
