"""The trials of a search, as tables and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from tidegate.training.search.tune import Outcome

# A screen's worth; the journal has all of them.
SHOWN = 20


def tables(outcome: Outcome) -> RenderableType:
    """The best trials, and the importance of each setting."""
    ranked = sorted(outcome.trials, key=_rank)
    names = list(dict.fromkeys(name for trial in ranked for name in trial.params))
    board = Table(
        title=f"{len(ranked)} trials, the best first; 1 is no better than the naive forecast",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for head in ("trial", "score", *(name.replace("_", "-") for name in names), "seconds", "ended early"):
        board.add_column(head, justify="right")
    for trial in ranked[:SHOWN]:
        values = (value_text(trial.params.get(name, "–")) for name in names)
        board.add_row(str(trial.number), _score(trial), *values, f"{_seconds(trial):.1f}", _why(trial))
    if not outcome.importance:
        return board
    weights = Table(title="how much each setting matters", title_justify="left", box=SIMPLE_HEAD)
    weights.add_column("setting")
    weights.add_column("share", justify="right")
    for name, share in outcome.importance.items():
        weights.add_row(name.replace("_", "-"), f"{100 * share:.0f} %")
    return Group(board, weights)


def draw(outcome: Outcome, path: Path) -> Path | None:
    """Draw the best score so far over the trials, and the score by each setting; None without a finished trial."""
    scored = [trial for trial in outcome.trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    if not scored:
        return None
    names = list(dict.fromkeys(name for trial in scored for name in trial.params))
    rows = 1 + -(-len(names) // 3)
    figure = Figure(figsize=(12, 3.2 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 3)
    _draw_progress(figure.add_subplot(grid[0, :]), scored)
    for place, name in enumerate(names):
        _draw_setting(figure.add_subplot(grid[1 + place // 3, place % 3]), scored, name)
    figure.savefig(path, dpi=110)
    return path


def trial_line(trial: FrozenTrial, done: int) -> str:
    """The line to print for a finished trial."""
    early = f" ({_why(trial)})" if trial.state == TrialState.PRUNED else ""
    settings = ", ".join(f"{name.replace('_', '-')} {value_text(value)}" for name, value in trial.params.items())
    return f"trial {trial.number}: score {_score(trial)}{early}; {settings}; {done} done"


def value_text(value: object) -> str:
    """The value of a setting, with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _draw_progress(axes: Axes, scored: Sequence[FrozenTrial]) -> None:
    values = [_value(trial) for trial in scored]
    best = [min(values[: index + 1]) for index in range(len(values))]
    numbers = [trial.number for trial in scored]
    axes.plot(numbers, values, "o", color="0.6", label="trial")
    axes.step(numbers, best, where="post", color="C0", label="best so far")
    axes.set(xlabel="trial", ylabel="validation score")
    axes.legend()


def _draw_setting(axes: Axes, scored: Sequence[FrozenTrial], name: str) -> None:
    tried = [trial for trial in scored if name in trial.params]
    values = [trial.params[name] for trial in tried]
    choices = list(getattr(tried[0].distributions[name], "choices", ()))
    places = [choices.index(value) for value in values] if choices else values
    axes.plot(places, [_value(trial) for trial in tried], "o", color="C0")
    if choices:
        axes.set_xticks(range(len(choices)), [value_text(choice) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif getattr(tried[0].distributions[name], "log", False):
        axes.set_xscale("log")
        low, high = min(values), max(values)
        ticks = [low, (low * high) ** 0.5, high]  # the default ticks overlap
        axes.minorticks_off()
        axes.set_xticks(ticks, [value_text(tick) for tick in ticks])
    axes.set(xlabel=name.replace("_", "-"), ylabel="validation score")


def _rank(trial: FrozenTrial) -> tuple[bool, float, int]:
    """Complete trials first: the score of a pruned trial is from one of its first epochs."""
    value = float("inf") if trial.value is None else trial.value
    return trial.state != TrialState.COMPLETE, value, trial.number


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None  # asked of finished trials only
    return trial.value


def _score(trial: FrozenTrial) -> str:
    return "–" if trial.value is None else f"{trial.value:.4f}"


def _why(trial: FrozenTrial) -> str:
    if trial.state != TrialState.PRUNED:
        return ""
    return str(trial.user_attrs.get("why", f"after epoch {trial.last_step}"))


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0
