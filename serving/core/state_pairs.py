"""Guesses which inputs of a graph are state, and which output is the next value of each.

The evidence, the strongest first: a recurrent operator starts from the input and ends in the output; their names are
the same but for words such as "in" and "out"; the output is computed from the input number by number; their shapes fit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.core.dataflow import Dataflow
from tidegate.core.onnx_file import FileTensor, Graph

# Words that tell the two ends of a state apart, and nothing else.
SIDES = {
    *("in", "out", "input", "output", "next", "new", "prev", "previous", "old", "cur", "current", "updated", "update"),
    *("final", "init", "initial", "past", "present", "n", "i", "o", "t", "return", "ret"),
}
STATE_NAME = re.compile(
    r"(?i)state|hidden|cache|cell|memory|buffer|context|prev|past_key|(^|[._/:])[hc](_?\d+|_?[nt]|x|_?in)?$"
)
X_NAME = re.compile(
    r"(?i)^(x|inputs?|features?|data|audio|speech|signal|wave\w*|mix|noisy|frames?|feats?|past_target)\b|^x[._]|^input"
)
# What exporters call an input that nobody has named.
NAMELESS = re.compile(r"(?i)^(onnx::\w+|args?_?\d*|inputs?[_.]?\d*|x[_.]?\d+|\d+|keras_tensor(_\d+)?)$")
NEVER_X = re.compile(r"(?i)^(sr|fs|rate|(sample|sampling)_?rate)$|len|mask|train")

# Each stronger evidence outweighs all that is weaker.
BY_OPERATOR, BY_NAME, BY_NUMBERS, BY_SHAPE = 1000, 200, 10, 1
# So far apart that the number of operators between them no longer tells one state from another.
DISTANCE_MAX = 90


@dataclass(frozen=True, slots=True)
class Pair:
    """A state: its input, the output that replaces it, and whether an operator or a name says so (`sure`)."""

    name: str
    next: str
    sure: bool


@dataclass(frozen=True, slots=True)
class Roles:
    """What each input and output is: `x`, state, another input, or a prediction."""

    x: str
    others: tuple[str, ...]
    pairs: tuple[Pair, ...]
    predictions: tuple[str, ...]


def guess_roles(graph: Graph, flow: Dataflow) -> Roles:
    """Guesses the roles of a graph with at least one input and one output."""
    scores = {
        (source.name, target.name): _score(flow, source, target)
        for source in graph.inputs
        for target in graph.outputs
        if _fits(source, target)
    }
    sure = {names: score for names, score in scores.items() if score >= BY_NAME}
    x = _choose_x(graph.inputs, _best(sure), scores)
    # A forecast of x may be called as x is.
    pairs = [
        Pair(*names, sure=True) for names in _best({names: score for names, score in sure.items() if names[0] != x})
    ]
    taken = {pair.name for pair in pairs} | {x}
    used = {pair.next for pair in pairs}
    weak = {
        names: score
        for names, score in scores.items()
        if names[0] not in taken
        and names[1] not in used
        and (score >= BY_NUMBERS or STATE_NAME.search(names[0]) or (score >= BY_SHAPE and NAMELESS.search(names[0])))
    }
    pairs += [Pair(*names, sure=False) for names in _best(weak)]
    used = {pair.next for pair in pairs}
    predictions = tuple(tensor.name for tensor in graph.outputs if tensor.name not in used)
    # Where every output is a next state, the last h is also the answer.
    return Roles(
        x,
        tuple(tensor.name for tensor in graph.inputs if tensor.name not in {x, *(pair.name for pair in pairs)}),
        tuple(sorted(pairs, key=lambda pair: [tensor.name for tensor in graph.inputs].index(pair.name))),
        predictions or (pairs[0].next,),
    )


def stem(name: str) -> tuple[str, str]:
    """A name without the words that tell an input from an output, and its digits: ("h", "0") for h0, ("h", "") for hn."""
    if NAMELESS.search(name):
        return "", ""  # it has the name of the operator that reads it, or a number
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)]
    words = [word[0] if word in {"hn", "cn"} else word for word in words]
    kept = [word for word in words if word not in SIDES]
    return "".join(word for word in kept if not word.isdigit()), ".".join(word for word in kept if word.isdigit())


def _fits(source: FileTensor, target: FileTensor) -> bool:
    """Whether an output can replace an input: the same type and rank, and no two fixed sizes that differ."""
    return (
        source.dtype == target.dtype
        and len(source.dims) == len(target.dims)
        and all(
            one == other or isinstance(one, str) or isinstance(other, str)
            for one, other in zip(source.dims, target.dims, strict=True)
        )
    )


def _score(flow: Dataflow, source: FileTensor, target: FileTensor) -> float:
    """How much speaks for a pair; below zero when the graph speaks against it."""
    starts, ends = flow.begins_with(source.name), flow.ends_with(target.name)
    if starts and ends and not starts & ends:
        return -1.0  # one is the h and the other the c, or of another layer
    score = float(BY_SHAPE if source.dims == target.dims else 0)
    if starts & ends:
        score += BY_OPERATOR
    (word, digits), (target_word, target_digits) = stem(source.name), stem(target.name)
    if word and word == target_word:
        score += BY_NAME * (2 if digits == target_digits else 1)
    distance = flow.elementwise_distances(source.name).get(target.name)
    if distance is not None:
        score += BY_NUMBERS + DISTANCE_MAX - min(distance, DISTANCE_MAX)
    return score


def _best(scores: dict[tuple[str, str], float]) -> list[tuple[str, str]]:
    """The pairs with the highest scores, each name once. Equal scores go by the order of the graph."""
    found: list[tuple[str, str]] = []
    sources: set[str] = set()
    targets: set[str] = set()
    for (source, target), score in sorted(scores.items(), key=lambda item: -item[1]):
        if score >= 0 and source not in sources and target not in targets:
            found.append((source, target))
            sources.add(source)
            targets.add(target)
    return found


def _choose_x(
    inputs: Sequence[FileTensor], pairs: Sequence[tuple[str, str]], scores: dict[tuple[str, str], float]
) -> str:
    """The input that is the timestep."""
    state = {source for source, _ in pairs}

    def key(tensor: FileTensor) -> tuple[bool, ...]:
        numbers = any(source == tensor.name and score >= BY_NUMBERS for (source, _), score in scores.items())
        named = bool(X_NAME.search(tensor.name))
        return (
            not tensor.dims or bool(NEVER_X.search(tensor.name)),
            tensor.name in state and not named,
            bool(STATE_NAME.search(tensor.name)),
            not named,
            numbers,
        )

    return min(inputs, key=key).name  # the first of several that are equal
