"""Streams that move between versions: what each answer must be, by bare onnxruntime."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.graphs import lstm
from tests.oracle import replay, same_bits
from tidegate.client import Prediction

# Two versions of one model: other weights, and a state of another size.
GRAPHS = {"1": lstm(hidden=16), "2": lstm(hidden=24, seed=7)}
# How many timesteps are replayed.
K = 6


class Answer(NamedTuple):
    """An answer, and the version that its stream was on when it came."""

    step: int
    outputs: Mapping[str, Any]
    version: str
    duplicate: bool


def answer(prediction: Prediction, version: str) -> Answer:
    """What a client got."""
    return Answer(prediction.step, dict(prediction), version, prediction.duplicate)


def check_answers(
    rows: Any, answers: Sequence[Answer], policy: str, graphs: Mapping[str, bytes] = GRAPHS, k: int = K
) -> str:
    """Empty when every answer came once, in order, and has the bits of the version that its stream was on.

    A repeat may come from before the move: the version before has answered it.
    """
    steps = [got.step for got in answers]
    if steps != list(range(1, len(rows) + 1)):
        return f"delivered {steps[:3]}...{steps[-3:]}, expected 1 to {len(rows)}"
    version, since = answers[0].version, 0
    truth = replay(graphs[version], rows)
    for got in answers:
        if got.version != version and not (got.duplicate and same_bits(got.outputs, truth[got.step - since - 1])):
            version, moved_at = got.version, got.step - 1
            since = max(0, moved_at - k) if policy == "rewarm" else moved_at
            truth = replay(graphs[version], rows[since:])
        if not same_bits(got.outputs, truth[got.step - since - 1]):
            return f"step {got.step} on version {got.version}: {got.outputs}, expected {truth[got.step - since - 1]}"
    return ""


def spread(graph: bytes, rows: Any) -> float:
    """The standard deviation of a version's forecasts: what differences are compared with."""
    return float(np.std([outputs["forecast"] for outputs in replay(graph, rows)]))
