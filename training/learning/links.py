"""What a network is given before it learns: the frozen linear link, the first quantiles around it, and the running level."""

from dataclasses import dataclass

import numpy as np
import torch

from tidegate.training.data.features import is_derived
from tidegate.training.data.scaler import Scaler
from tidegate.training.data.series import Series, Spans
from tidegate.training.data.split import Split
from tidegate.training.judging.ridge import Ridge, fit_ridge
from tidegate.training.network.heads import ForecastHead
from tidegate.training.network.level import Level
from tidegate.training.network.network import Network, fill_forward
from tidegate.training.settings import Architecture, Classify

# Time constants of the level, in seasons: from a day to four weeks where a season is a day. Shorter ones would take the
# season away too. A series without a season is taken for one of a day of hourly values.
LEVEL_SEASONS = (1, 3, 7, 14, 28)
DEFAULT_SEASON = 24
# A level needs some of its time constants within a series to be told from a constant.
ROWS_PER_LEVEL = 8
# Rows that a time constant and the usual distance from the level are taken from, the latest ones.
LEVEL_ROWS = 20_000
# The first step of a quantile, in units of the error of persistence, is at least this: the network can widen it.
MIN_STEP = 1e-3


@dataclass(frozen=True)
class Given:
    """The architecture with all sizes that depend on the data, and the regression of its linear link.

    `weights` are those of an earlier training, to begin with; random ones by default. They have the regression with them.
    """

    architecture: Architecture
    ridge: Ridge | None
    weights: dict[str, torch.Tensor] | None = None


def prepare_links(
    series: Series, split: Split, scaler: Scaler, architecture: Architecture, *, ridge: Ridge | None = None
) -> Given:
    """Solve the linear link, and choose the time constant of the level.

    Where a horizon has no true value in the training or the validation part there is nothing to solve: the link to the last
    value takes the place of the linear one. `ridge` is the solution, if it is there already.
    """
    task = architecture.task
    if isinstance(task, Classify):
        return Given(architecture, None)
    if "linear" in task.links:
        ridge = ridge or fit_ridge(series, split, task.targets, task.horizons, season=task.season or None)
        links = tuple(dict.fromkeys("last" if link == "linear" and ridge is None else link for link in task.links))
        task = task.model_copy(update={"links": links, "lags": ridge.lags if ridge else task.lags})
    if architecture.level == "on" and architecture.level_steps is None:
        steps = level_steps(series, split, scaler, max(task.horizons), task.season)
        architecture = architecture.model_copy(update={"level_steps": steps})
    return Given(architecture.model_copy(update={"task": task}), ridge)


def level_steps(series: Series, split: Split, scaler: Scaler, horizon: int, season: int) -> int:
    """The time constant whose level is nearest to the values one horizon later, over all measured features.

    This is how the rate of simple exponential smoothing is chosen (Hyndman and Athanasopoulos, Forecasting: Principles and
    Practice, section 8.1).
    """
    values, missing = _latest(series, split.train, scaler)
    measured = [index for index, name in enumerate(series.names) if not is_derived(name)]
    unit = season if season >= 2 else DEFAULT_SEASON
    candidates = [unit * count for count in LEVEL_SEASONS]
    candidates = [steps for steps in candidates if steps * ROWS_PER_LEVEL <= len(values)] or candidates[:1]
    errors = []
    for steps in candidates:
        level = Level(values.shape[-1], steps)
        relative, _ = level.sequence(values, missing, level.initial_state(1))
        ahead = values[horizon:] - (values - relative)[:-horizon]
        errors.append(ahead[:, 0, measured].square().mean(dim=0))
    every = torch.stack(errors)  # (candidates, features)
    return candidates[int((every / every.mean(dim=0).clamp(min=1e-12)).mean(dim=1).argmin())]


def set_links(network: Network, ridge: Ridge | None, series: Series, split: Split, scaler: Scaler) -> None:
    """Set the weights of the linear link, quantiles of its errors, and the usual distance from the level, in place."""
    head = network.head
    with torch.no_grad():
        if network.level:
            values, missing = _latest(series, split.train, scaler)
            relative, _ = network.level.sequence(values, missing, network.level.initial_state(1))
            spread = relative[:, 0].std(dim=0, correction=0)
            # The phase of a day has no level, and what does not move has no distance from it.
            measured = torch.tensor([not is_derived(name) for name in series.names])
            network.level.spread.copy_(torch.where(measured & (spread > 0.0), spread, 0.0))
        if ridge and isinstance(head, ForecastHead) and head.linear:
            window, features, intercepts = (_float32(part) for part in ridge.weights())
            for target in range(len(ridge.targets)):
                head.linear.set_weights(target, window[:, target], features[:, target], intercepts[:, target])
            if len(head.steps):
                _set_quantiles(head, ridge, series, split.train)


def keep_corrections(network: Network) -> None:
    """Put the shares that are left of the corrections into the weights, in place, so that all of them learn again."""
    head = network.head
    if not (isinstance(head, ForecastHead) and head.linear):
        return
    with torch.no_grad():
        kept = head.kept.flatten()
        head.line.weight.mul_(kept.unsqueeze(1))
        head.line.bias.mul_(kept)
        for share in head.share.values():
            share.mul_(head.kept)
        if "features" in head.task.links:
            head.skip.weight.mul_(kept.unsqueeze(1))
        head.kept.fill_(1.0)


def _set_quantiles(head: ForecastHead, ridge: Ridge, series: Series, spans: Spans) -> None:
    """The first steps of the quantiles: those of the errors of the regression, whatever the cells say."""
    levels = sorted({*head.task.quantiles, 0.5})
    edges = ridge.error_quantiles(series, head.task.horizons, spans, levels)  # in scaled units
    gaps = np.diff(edges, axis=0)
    # The step of a quantile below the median leads to the one above it, that of another to the one below.
    steps = [gap for level, gap in zip([level for level in levels if level != 0.5], gaps, strict=True)]
    size = np.maximum(np.stack(steps, axis=-1) / head.naive.cpu().numpy()[..., None], MIN_STEP)
    # The inverse of ELU + 1.
    bias = np.where(size >= 1.0, size - 1.0, np.log(np.minimum(size, 1.0)))
    torch.nn.init.zeros_(head.spread.weight)
    head.spread.bias.copy_(_float32(bias).flatten())


def _latest(series: Series, spans: Spans, scaler: Scaler) -> tuple[torch.Tensor, torch.Tensor]:
    """The latest rows of the spans as one sequence (time, 1, features), scaled and filled, and what of it is missing."""
    rows = np.concatenate([np.arange(first, end) for first, end in spans])[-LEVEL_ROWS:]
    scaled = torch.from_numpy((series.values[rows] - scaler.mean) / scaler.std).unsqueeze(1)
    missing = torch.isnan(scaled)
    return fill_forward(scaled, missing, torch.zeros_like(scaled[0])), missing


def _float32(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
