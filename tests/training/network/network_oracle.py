"""A whole network once more, in float64 and NumPy, from the formulas in the docstrings alone. Imports nothing of ours.

Everything is told as plain values: weights by their names in torch, and what the task is as a `Recipe`. The batch is gone
through stream by stream and timestep by timestep wherever a loop is plainer than an array.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.training.network import oracle
from tests.training.network.oracle import Doubles

Weights = dict[str, Doubles]


@dataclass(frozen=True)
class Recipe:
    """What a network is made of; horizons count timesteps, targets are features. No horizons: it classifies."""

    cell: str
    activation: str = "tanh"
    layers: int = 1
    kernel: int = 1
    changes: bool = True
    masked: bool = True
    targets: tuple[int, ...] = ()
    horizons: tuple[int, ...] = ()
    quantiles: tuple[float, ...] = ()
    links: tuple[str, ...] = ("last",)
    season: int = 0
    lags: tuple[int, ...] = (1,)  # of the link `linear`
    level_steps: int | None = None
    follow: bool = False
    coverage: float | None = None
    pair: tuple[int, int] = (0, 0)  # of the quantiles that an interval begins from
    alarm_rate: float | None = None
    alarm_times: tuple[float, float, int] = (0.0, 0.0, 0)  # memory, slow and warm-up, in timesteps


def run(recipe: Recipe, weights: Weights, x: Doubles) -> tuple[dict[str, Doubles], dict[str, Doubles]]:
    """(time, batch, features) raw, from the initial state -> the outputs (time, batch, ...) by name, and the last state by name."""
    mean, std = weights["mean"], weights["std"]
    missing = np.isnan(x)
    seen = held((x - mean) / std)
    state = {"last": seen[-1]}
    relative = seen
    if recipe.level_steps is not None:
        relative, state["level"] = relative_to_level(recipe.level_steps, weights["level.spread"], seen, missing)
    moved = np.clip(np.diff(seen, axis=0, prepend=0 * seen[:1]) / weights["pace"], -5, 5)
    inputs = y = np.concatenate([relative, *[moved] * recipe.changes, *[missing] * recipe.masked], axis=-1)
    if recipe.kernel > 1:
        past = np.zeros((recipe.kernel - 1, *y.shape[1:]))
        y, state["past"] = oracle.convolution(y, weights["front.weight"], weights["front.bias"], past)
    for index in range(recipe.layers):
        y, after = run_layer(recipe, weights, index, y)
        state |= {f"{name}{index}": part[None] for name, part in after.items()}
    if not recipe.horizons:
        logits = y @ weights["head.line.weight"].T + weights["head.line.bias"]
        odds = np.exp(logits)
        return {"probability": odds / odds.sum(-1, keepdims=True)}, state
    head_outputs, after = forecasts(recipe, weights, y, seen, missing, inputs)
    state |= after
    outputs = {"forecast": head_outputs["forecast"] * std[list(recipe.targets)] + mean[list(recipe.targets)]}
    number = 0
    quantiles = head_outputs["quantiles"]
    if recipe.follow:
        quantiles, state["spread"] = followed(recipe, weights["monitors.0.start"], seen, missing, head_outputs)
        number = 1
    if recipe.quantiles:
        scale, shift = (part[list(recipe.targets), None] for part in (std, mean))
        outputs["quantiles"] = quantiles * scale + shift
    if recipe.coverage is not None:
        interval, state["intervals"] = intervals(recipe, weights, number, seen, missing, head_outputs)
        scale, shift = (part[list(recipe.targets), None] for part in (std, mean))
        outputs["interval"] = interval * scale + shift
        number += 1
    if recipe.alarm_rate is not None:
        own = {
            name: weights[f"monitors.{number}.{name}"]
            for name in ("mix", "offset", "own", "white", "tail", "start", "fitted")
        }
        steps, watch = zip(
            *[
                alarms(recipe, own, seen[:, row], missing[:, row], head_outputs["forecast"][:, row])
                for row in range(x.shape[1])
            ],
            strict=True,
        )
        outputs |= {name: np.stack([part[name] for part in steps], axis=1) for name in steps[0]}
        state["watch"] = np.stack(watch)
    return outputs, state


def held(scaled: Doubles) -> Doubles:
    """Missing values held at the last one, and at 0 before the first."""
    seen = np.zeros_like(scaled)
    last = np.zeros(scaled.shape[1:])
    for now, value in enumerate(scaled):
        last = seen[now] = np.where(np.isnan(value), last, value)
    return seen


def run_layer(recipe: Recipe, weights: Weights, index: int, y: Doubles) -> tuple[Doubles, dict[str, Doubles]]:
    """A recurrent layer from the initial state, and its last state by name."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    own = [weights[f"cells.{index}.kernel.{name}"] for name in names]
    zero = np.zeros((y.shape[1], own[1].shape[1]))
    activation_fn = oracle.ACTIVATIONS[recipe.activation]
    match recipe.cell:
        case "gru":
            y, h = oracle.gru(y, own, zero, activation_fn)
            return y, {"h": h}
        case "rnn":
            y, h = oracle.rnn(y, own, zero, activation_fn)
            return y, {"h": h}
    peepholes = weights.get(f"cells.{index}.peepholes")
    previous = recipe.cell == "peephole-previous"
    y, h, c = oracle.lstm(y, own, zero, zero, activation_fn, peepholes, "previous" if previous else "new")
    return y, {"h": h, "c": c}


def forecasts(
    recipe: Recipe, weights: Weights, y: Doubles, seen: Doubles, missing: Any, inputs: Doubles
) -> tuple[dict[str, Doubles], dict[str, Doubles]]:
    """In scaled units, (time, batch, horizons, targets) and with quantiles as a further axis; `window` and `season`."""
    steps, batch = y.shape[:2]
    own = seen[..., list(recipe.targets)]
    shape = (steps, batch, len(recipe.horizons), len(recipe.targets))
    naive = weights["head.naive"]
    correction = (y @ weights["head.line.weight"].T + weights["head.line.bias"]).reshape(shape)
    if "features" in recipe.links:
        correction = correction + (inputs @ weights["head.skip.weight"].T).reshape(shape)
    links = {"last": np.repeat(own[:, :, None], len(recipe.horizons), axis=2)}
    state: dict[str, Doubles] = {}
    if "linear" in recipe.links:
        links["linear"], state["window"] = linear(recipe, weights, seen, missing)
        naive = naive * weights["head.kept"]
    if "season" in recipe.links:
        links["season"], state["season"] = seasons(recipe, own)
    shared = [link for link in recipe.links if link not in ("features", "linear")]
    for link in shared:
        correction = correction + weights[f"head.share.{link}"] * links[link]
    base = "linear" if "linear" in recipe.links else shared[0] if shared else None
    median = links[base] + correction * naive if base else correction * naive
    naive = weights["head.naive"]
    others = [quantile for quantile in recipe.quantiles if quantile != 0.5]
    quantiles = np.repeat(median[..., None], len(recipe.quantiles), axis=-1)
    if others:
        raw = (y @ weights["head.spread.weight"].T + weights["head.spread.bias"]).reshape(*shape, len(others))
        size = naive[..., None] * (1.0 + np.where(raw > 0, raw, np.exp(np.minimum(raw, 0)) - 1))
        for place, quantile in enumerate(recipe.quantiles):
            for number, other in enumerate(others):
                if quantile <= other < 0.5:
                    quantiles[..., place] -= size[..., number]
                if 0.5 < other <= quantile:
                    quantiles[..., place] += size[..., number]
    return {"forecast": median, "quantiles": quantiles}, state


def relative_to_level(steps: int, spread: Doubles, seen: Doubles, missing: Any) -> tuple[Doubles, Doubles]:
    """The values less their exponential mean since the first, in units of `spread`; the state `level`."""
    relative = seen.copy()
    sums = np.zeros((2, *seen.shape[1:]))
    for now, value in enumerate(seen):
        known = ~missing[: now + 1].all(axis=0)
        sums += (np.stack([value, known]) - sums) / steps
        level = np.divide(sums[0], sums[1], out=np.zeros_like(value), where=known)
        relative[now] = np.where(spread > 0, (value - level) / np.where(spread > 0, spread, 1), value)
    return relative, np.concatenate(list(sums), axis=-1)


def linear(recipe: Recipe, weights: Weights, seen: Doubles, missing: Any) -> tuple[Doubles, Doubles]:
    """The regression on the past less the present value (time, batch, horizons, targets), and the state `window`."""
    steps, batch, _ = seen.shape
    window = max(recipe.lags[-1], 2)
    forecast = np.zeros((steps, batch, len(recipe.horizons), len(recipe.targets)))
    state = np.zeros((batch, len(recipe.targets), window))
    for row, place in np.ndindex(batch, len(recipe.targets)):
        own = seen[:, row, recipe.targets[place]]
        lines = (weights[f"head.linear.lines.{place}.{name}"] for name in ("weight", "bias"))
        weight, bias = (part.reshape(len(recipe.lags), len(recipe.horizons), -1) for part in lines)
        first = next((now for now in range(steps) if not missing[now, row, recipe.targets[place]]), steps)
        for now in range(steps):
            age = max(now + 1 - first, 0)
            past = np.array([own[max(now - lag, min(first, now))] for lag in range(window - 1, 0, -1)])
            chosen = max(index for index, lags in enumerate(recipe.lags) if lags <= max(age, 1))
            x = np.concatenate([past - own[now], seen[now, row]])
            forecast[now, row, :, place] = weight[chosen] @ x + bias[chosen, :, 0] + own[now]
            state[row, place] = [*past[1:], own[now], min(age, window)]
    return forecast, state.reshape(batch, -1)


def followed(
    recipe: Recipe, start: Doubles, seen: Doubles, missing: Any, head_outputs: dict[str, Doubles]
) -> tuple[Doubles, Doubles]:
    """`quantiles` that follow the errors, scaled, and the state `spread` (batch, n)."""
    steps, batch, horizons, targets = head_outputs["forecast"].shape
    watched = [0]
    for index in range(1, horizons):
        if recipe.horizons[index] >= 2 * recipe.horizons[watched[-1]]:
            watched.append(index)
    levels = recipe.quantiles
    others = [level for level in levels if level != 0.5]
    factor = np.broadcast_to(start, (batch, *start.shape)).copy()
    median = head_outputs["forecast"]
    served = np.zeros_like(head_outputs["quantiles"])
    for now in range(steps):
        for row, place, target, number in np.ndindex(batch, len(watched), targets, len(others)):
            horizon, level, feature = recipe.horizons[watched[place]], others[number], recipe.targets[target]
            made = now - horizon
            if made >= 0 and not missing[now, row, feature]:
                edge = served[made, row, watched[place], target, levels.index(level)]
                beyond = seen[now, row, feature] > edge if level > 0.5 else seen[now, row, feature] < edge
                outside = min(level, 1 - level)
                moved = 0.2 / math.sqrt(horizon) * (beyond - outside)
                factor[row, place, target, number] = np.clip(factor[row, place, target, number] + moved, 0.25, 8)
        for row, index, target in np.ndindex(batch, horizons, targets):
            own = max(place for place, of in enumerate(watched) if recipe.horizons[of] <= recipe.horizons[index])
            before = head_outputs["quantiles"][now, row, index, target]
            middle = median[now, row, index, target]
            for quantile in levels:
                between = [level for level in others if quantile <= level < 0.5 or 0.5 < level <= quantile]
                edges = dict(zip(levels, before, strict=True)) | {0.5: middle}
                total = middle
                for level in between:
                    rising = sorted(edges)
                    inner = rising[rising.index(level) + (1 if level < 0.5 else -1)]
                    total += factor[row, own, target, others.index(level)] * (edges[level] - edges[inner])
                served[now, row, index, target, levels.index(quantile)] = total
    waiting = []
    for index in watched:
        pending = np.concatenate([median[..., None], served[..., [levels.index(level) for level in others]]], axis=-1)
        waiting.append(pending[-recipe.horizons[index] :, :, index].swapaxes(0, 1).reshape(batch, -1))
    return served, np.concatenate([*waiting, (factor - start).reshape(batch, -1)], axis=-1)


def seasons(recipe: Recipe, own: Doubles) -> tuple[Doubles, Doubles]:
    """The targets' values (time, batch, horizons, targets) whole seasons before what is forecast; the state `season`."""
    steps, batch, targets = own.shape
    before = np.zeros((steps, batch, len(recipe.horizons), targets))
    for index, horizon in enumerate(recipe.horizons):
        # As many whole seasons before the time that is forecast as bring it to the present or before.
        back = recipe.season * math.ceil(horizon / recipe.season) - horizon
        for now in range(back, steps):
            before[now, :, index] = own[now - back]
    kept = own[-(recipe.season - 1) :]
    return before, kept.swapaxes(0, 1).reshape(batch, -1)


def intervals(
    recipe: Recipe, weights: Weights, number: int, seen: Doubles, missing: Any, head_outputs: dict[str, Doubles]
) -> tuple[Doubles, Doubles]:
    """`interval` (time, batch, horizons, targets, 2), scaled, and the state `intervals` (batch, n)."""
    coverage = recipe.coverage
    assert coverage is not None  # else it is not called
    steps, batch, horizons, targets = head_outputs["forecast"].shape
    start, scale = (weights[f"monitors.{number}.{name}"].reshape(horizons, targets) for name in ("start", "scale"))
    centre, width = head_outputs["forecast"], np.zeros_like(head_outputs["forecast"])
    if recipe.pair[0] < recipe.pair[1]:
        low, high = (head_outputs["quantiles"][..., place] for place in recipe.pair)
        centre, width = (low + high) / 2, (high - low) / 2
    half = np.zeros_like(centre)
    q = np.zeros((batch, horizons, targets))
    for now in range(steps):
        for row, index, place in np.ndindex(batch, horizons, targets):
            horizon, feature = recipe.horizons[index], recipe.targets[place]
            made = now - horizon
            if made >= 0 and not missing[now, row, feature]:
                outside = abs(seen[now, row, feature] - centre[made, row, index, place]) > half[made, row, index, place]
                rate = 0.15 / math.sqrt(horizon) * scale[index, place]
                q[row, index, place] += rate * (outside - (1 - coverage))
        half[now] = np.maximum(width[now] + start + q, 1e-6)
    waiting = [
        part[-horizon:, :, index].swapaxes(0, 1).reshape(batch, -1)
        for part in (centre, half)
        for index, horizon in enumerate(recipe.horizons)
    ]
    interval = np.stack([centre - half, centre + half], axis=-1)
    return interval, np.concatenate([*waiting, q.reshape(batch, -1)], axis=-1)


def alarms(
    recipe: Recipe, weights: Weights, seen: Doubles, missing: Any, forecast: Doubles
) -> tuple[dict[str, Doubles], Doubles]:
    """One stream: seen and missing (time, features), forecast (time, horizons, targets) -> outputs (time, n), state (n,)."""
    chosen = list(recipe.targets)
    count, rate = len(chosen), recipe.alarm_rate
    assert rate is not None  # else it is not called
    memory, slowness, warm_up = recipe.alarm_times
    factor, summand, before = weights["tail"]
    start, fitted = weights["start"][0], weights["fitted"][0]
    last, expected, jumped = np.zeros(seen.shape[1]), np.zeros(count), np.zeros(count)
    mean, spread, slow = np.zeros(2 * count), np.zeros(2 * count), np.zeros(2 * count)
    still, gone = np.zeros(count), np.zeros(count)
    shift, burst, age = 0.0, 0.0, 0
    most = max(memory, warm_up, 10 / rate)
    steps: dict[str, list[Any]] = {"score": [], "alarm": [], "warm": [], "surprise": []}
    for now, value in enumerate(seen):
        here = ~missing[now, chosen]
        both = np.tile(here, 2)
        mixed = weights["mix"] @ np.concatenate([value[chosen] - expected, value]) + weights["offset"]
        deviation = np.where(both, (mixed - mean) / np.sqrt(np.exp(spread)), 0.0)
        bounded = np.clip(deviation, -5, 5)
        used = np.concatenate([here & (age >= warm_up / 4), here])
        slow = np.where(used, slow * (1 - 1 / slowness) + bounded / slowness, slow)
        jump = np.where(here, deviation[:count] @ weights["own"], 0.0)
        back = np.where(np.sign(jump) * np.sign(jumped) < 0, np.minimum(abs(jump), abs(jumped)), 0.0)
        still = np.where(here, np.where(value[chosen] == last[chosen], still + 1, 0.0), still)
        gone = np.where(here, 0.0, gone + 1)
        slow_jump = abs(slow[:count] @ weights["own"])
        single = [abs(jump), back, abs(deviation[count:]), slow_jump, abs(slow[count:]), still, gone]
        joint = [np.linalg.norm(errors[:count] @ weights["white"]) for errors in (deviation, slow)]
        parts = np.concatenate([*single, joint])
        root = np.maximum(1.0, factor * parts + summand) ** (1 / 16)
        evidence = max(before * 32 * (root - 1) / (root + 1))  # the logarithm, nearly
        threshold = start + shift
        warm = age >= warm_up
        score = evidence / (evidence + threshold) if warm else 0.0
        alarm = score > 0.5
        for name, number in (("score", [score]), ("alarm", [alarm]), ("warm", [warm]), ("surprise", jump)):
            steps[name].append(np.array(number, np.float64))
        counted = min(age, most)
        if warm and not alarm:
            size = min(max(1 / (rate * (fitted + counted)), 0.1), 0.5)
            shift += size * ((min(burst, 12) if burst < 2**20 else 0.0) - rate)
        shift = max(shift, 0.5 - start)
        burst = (max(burst, 2**20) if evidence > threshold + 4 else burst) + 1 if alarm else 0.0
        slow = np.zeros(2 * count) if burst % 2**20 >= 6 else slow
        prior = np.repeat([64, 1], count)
        mean = mean + used * np.maximum(1 / (counted + prior), 1 / memory) * bounded * np.exp(spread / 2)
        pace = used * max(1 / (counted + 64), 1 / (2 * memory)) * (0.25 if alarm else 1.0)
        spread = np.maximum(spread + pace * (bounded**2 - 1), math.log(0.25))
        expected, jumped, last, age = forecast[now, recipe.horizons.index(1)], jump, value, age + 1
    state = [*expected, *jumped, *mean, *spread, *slow, *still, *gone, min(age, most), burst, shift]
    return {name: np.stack(rows) for name, rows in steps.items()}, np.array(state)
