"""Finds state tensors whose next values are exchanged, where the recurrent operators of the graph tell.

h and c of an LSTM have one shape, so shapes do not tell them apart; a stream would run, and be wrong from its second timestep on.
"""

from collections.abc import Sequence

from tidegate.core.dataflow import Dataflow
from tidegate.core.onnx_file import Graph


def crossed_pairs(graph: Graph, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """What is wrong with described pairs (input, output that replaces it), in words. Empty when nothing tells."""
    flow = Dataflow(graph)
    ends = {following: flow.ends_with(following) for _, following in pairs}
    found = []
    for name, following in pairs:
        begins = flow.begins_with(name)
        if not begins or not ends[following] or begins & ends[following]:
            continue
        right = [other for _, other in pairs if begins & ends[other]]
        if right:
            found.append(
                f"'{name}' starts a recurrent operator whose last state is in '{right[0]}', but its next value is said to be "
                f"'{following}'; exchange them"
            )
    return found
