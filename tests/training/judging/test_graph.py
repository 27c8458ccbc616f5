"""The exported graph, stepped: many streams at once say what each says alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tidegate.training.judging import graph as module
from tidegate.training.judging.graph import Graph


@pytest.mark.parametrize("batch", [64, 2])
def test_streams_together_give_the_answers_of_each_alone(
    graph: Graph, sensor_rows: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Bit by bit, for segments of different lengths that overlap, in the order in which they were given."""
    monkeypatch.setattr(module, "BATCH", batch)
    values = sensor_rows(60, 1)[:, 0]
    segments = [(3, 10), (0, 40), (5, 6), (5, 12), (20, 60)]
    together = graph.replay_segments(values, segments)
    for name in graph.outputs:
        alone = [graph.replay(values[first:end, None])[0][name][:, 0] for first, end in segments]
        np.testing.assert_array_equal(together[name], np.concatenate(alone))


def test_only_the_wanted_outputs_are_kept(graph: Graph, sensor_rows: Callable[..., Any]) -> None:
    """The others are computed and forgotten; one that the graph lacks is not made up."""
    assert set(graph.replay_segments(sensor_rows(5, 1)[:, 0], [(0, 5)], keep=("forecast", "score"))) == {"forecast"}


def test_nothing_to_replay_is_nothing(graph: Graph, sensor_rows: Callable[..., Any]) -> None:
    """No segment, no rows, no error."""
    assert graph.replay_segments(sensor_rows(5, 1)[:, 0], [])["forecast"].shape == (0, 2, 2)


def test_a_graph_has_its_metadata(graph: Graph) -> None:
    """Targets, units, horizons and quantiles come from its own description."""
    assert (graph.targets, graph.units, graph.horizons) == (["s0", "s2"], ["°C", "°C"], [1, 3])
    assert graph.quantiles == [0.1, 0.5, 0.9]
