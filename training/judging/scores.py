"""What is known of how good a model is: the nouns, and the JSON that `card.json`, `--json` and the report read.

Knows no model and no formula. Every number is of the held-out part and of the exported graph, replayed step by step.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

# Rows of the table that go into a model's metadata, which every client of the server may ask for.
SUMMARY_ROWS = 32
# Digits that are kept there.
SUMMARY_DIGITS = 5


@dataclass(frozen=True)
class Quantile:
    """A quantile's pinball loss in the target's unit, and how often the truth is at most the quantile."""

    level: float
    pinball: float
    below: float


@dataclass(frozen=True)
class Error:
    """Errors of one forecaster, in the target's unit.

    `mase` is the MAE in units of the naive forecast's own on the training part, None where that is not known. The rest is
    None, and `quantiles` empty, where there are no quantiles: `pinball` is the mean over the quantiles, `coverage` and
    `width` are of the interval from the lowest to the highest.
    """

    mae: float
    rmse: float
    mase: float | None = None
    pinball: float | None = None
    coverage: float | None = None
    width: float | None = None
    quantiles: tuple[Quantile, ...] = ()


@dataclass(frozen=True)
class Interval:
    """The calibrated interval of the graph: how often it should hold the truth, how often it does, its mean width."""

    nominal: float | None
    coverage: float
    width: float


@dataclass(frozen=True)
class Score:
    """One target at one horizon, the model beside its baselines, all on the same `count` timesteps.

    A baseline is None where it cannot be had: no season, or a training part that is not at hand.
    """

    target: str
    unit: str
    horizon: int
    horizon_s: float | None
    count: int
    model: Error
    persistence: Error
    seasonal_naive: Error | None
    ridge: Error | None = None
    interval: Interval | None = None

    @property
    def rivals(self) -> dict[str, Error]:
        """The baselines that there are, by name."""
        named = {"persistence": self.persistence, "seasonal_naive": self.seasonal_naive, "ridge": self.ridge}
        return {name: error for name, error in named.items() if error is not None}

    @property
    def wins(self) -> bool:
        """Whether the model's MAE is below that of every baseline."""
        return all(self.model.mae < rival.mae for rival in self.rivals.values())

    @property
    def skill(self) -> float:
        """The part of the best baseline's MAE that the model takes away: 0 is no better, 1 is perfect."""
        least = min(rival.mae for rival in self.rivals.values())
        return 1.0 - self.model.mae / least if least > 0 else -math.inf


@dataclass(frozen=True)
class Start:
    """Errors of fresh streams at one target and horizon, beside those of a stream that has run for long.

    For a classification `target` is "class", `horizon` is 0 and an error is a wrong class.

    Attributes:
        cold: the mean error in each of the bands of `ColdStart`.
        warm: the mean error of the long stream on the same timesteps.
        settled: after how many timesteps the fresh streams are as good as the long one, to within `ColdStart.tolerance`
            in every later band; None when they are not by the last.
    """

    target: str
    horizon: int
    cold: tuple[float, ...]
    warm: tuple[float, ...]
    settled: int | None


@dataclass(frozen=True)
class ColdStart:
    """How long a new stream needs: `streams` of them were opened all over the held-out part.

    `steps` are the last timesteps of bands: with (1, 2, 5, 10) the third one holds a stream's timesteps 3 to 5.
    """

    streams: int
    steps: tuple[int, ...]
    tolerance: float
    table: tuple[Start, ...]


@dataclass(frozen=True)
class ClassError:
    """How well one classifier does; by timestep, and `recording_...` as the plain mean over recordings."""

    accuracy: float
    macro_f1: float
    cross_entropy: float
    perplexity: float
    recording_accuracy: float
    recording_cross_entropy: float


@dataclass(frozen=True)
class Confidence:
    """Timesteps whose likeliest class has a probability in [low, high): its mean, and how often it was right."""

    low: float
    high: float
    count: int
    said: float
    right: float


@dataclass(frozen=True)
class ClassScores:
    """Classification: the model beside its baselines, on the same `count` labelled timesteps of `recordings`.

    `frequencies` always says the training part's shares of the classes; `linear` is least squares over a window.
    `confusion[i][j]` counts how often class i was taken for class j.
    """

    classes: tuple[str, ...]
    count: int
    recordings: int
    model: ClassError
    frequencies: ClassError | None
    linear: ClassError | None
    confusion: tuple[tuple[int, ...], ...]
    confidence: tuple[Confidence, ...]

    @property
    def rivals(self) -> dict[str, ClassError]:
        """The baselines that there are, by name."""
        named = {"frequencies": self.frequencies, "linear": self.linear}
        return {name: error for name, error in named.items() if error is not None}

    @property
    def lost(self) -> tuple[str, ...]:
        """The baselines that are right as often, or surprised as little, as the model."""
        return tuple(
            name
            for name, rival in self.rivals.items()
            if not (self.model.accuracy > rival.accuracy and self.model.cross_entropy < rival.cross_entropy)
        )

    @property
    def wins(self) -> bool:
        """Whether the model beats every baseline."""
        return not self.lost


@dataclass(frozen=True)
class Detection:
    """How one detector does on injected faults and on clean data.

    Attributes:
        found, events: faults found, of how many; by kind in `kinds`.
        during: faults found before they were over, and not by the jump back.
        false_alarms: bursts of alarms that belong to no fault.
        precision, recall, f1: of events; precision is None where there was no alarm at all.
        auc_pr: average precision of the score by timestep.
        delay: timesteps from the first of a fault to its first alarm, the median of the found ones; None when none was.
        clean_alarms: bursts of alarms on the clean held-out part; `clean_alarms_a_day` where the period is known.
        clean_share: share of clean timesteps with an alarm.
    """

    found: int
    during: int
    events: int
    false_alarms: int
    precision: float | None
    recall: float
    f1: float
    auc_pr: float
    delay: float | None
    clean_alarms: int
    clean_alarms_a_day: float | None
    clean_share: float
    kinds: tuple["Kind", ...]


@dataclass(frozen=True)
class Kind:
    """The faults of one kind: how many were found, and the median delay of those."""

    kind: str
    found: int
    events: int
    delay: float | None


@dataclass(frozen=True)
class AnomalyScores:
    """Anomalies: the graph beside PCA (T2 and Q) at a threshold that gives as many false alarms on the clean part.

    `copies` of the held-out part had faults put into them, in `columns`; `tolerance` is in timesteps, see `events`.
    `alarm_rate` is the share of clean timesteps with an alarm that the graph promises.
    """

    copies: int
    tolerance: int
    columns: tuple[str, ...]
    alarm_rate: float | None
    model: Detection
    pca: Detection | None

    @property
    def wins(self) -> bool:
        """Whether the graph has a better event F1 than PCA at the same false alarm rate."""
        return self.pca is None or self.model.f1 > self.pca.f1


@dataclass(frozen=True)
class Scores:
    """Everything; sections that do not apply are empty or None.

    `mase_scale` holds by target what a MAE is divided by to give a MASE: the mean absolute error of the naive forecast on
    the training part, seasonal where there is a season.
    """

    data: str = ""
    start: str = ""
    end: str = ""
    rows: int = 0
    season: int | None = None
    table: tuple[Score, ...] = ()
    mase_scale: dict[str, float] = field(default_factory=dict)
    classification: ClassScores | None = None
    anomaly: AnomalyScores | None = None
    cold_start: ColdStart | None = None

    @property
    def wins(self) -> bool:
        """Whether the model beats every baseline: at every horizon of every target, or at its classes."""
        return all(score.wins for score in self.table) and (self.classification is None or self.classification.wins)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for the card and for `--json`; the keys are the names of the fields."""
        whole = asdict(self)
        whole["table"] = [asdict(score) | _judged(score) for score in self.table]
        for name, section in (("classification", self.classification), ("anomaly", self.anomaly)):
            if section is not None:
                whole[name] |= {"beats_baselines": section.wins}
        return whole | {"beats_baselines": self.wins}

    def summary(self) -> dict[str, Any]:
        """The same, small: for the metadata of the graph. Few digits, no curves, no matrix, and not every baseline's all."""
        whole = self.as_json()
        rows = [_short_row(row) for row in whole["table"][:SUMMARY_ROWS]]
        small = {name: whole[name] for name in ("data", "start", "end", "rows", "season")} | {"table": rows}
        if len(rows) < len(self.table):
            small["rows_left_out"] = len(self.table) - len(rows)
        for name in ("classification", "anomaly"):
            if whole[name] is not None:
                small[name] = {
                    key: value
                    for key, value in whole[name].items()
                    if key not in {"confusion", "confidence", "columns"}
                }
        if self.cold_start is not None:
            settled = [start.settled for start in self.cold_start.table]
            small["settled"] = None if None in settled else max(step for step in settled if step is not None)
        rounded: dict[str, Any] = _rounded(small | {"beats_baselines": self.wins})
        return rounded


def _judged(score: Score) -> dict[str, Any]:
    return {"skill": score.skill, "beats_baselines": score.wins}


def _short_row(row: dict[str, Any]) -> dict[str, Any]:
    """Of the model what there is but its single quantiles, of the baselines the MAE."""
    kept = {name: row[name] for name in ("target", "unit", "horizon", "count", "skill", "beats_baselines")}
    model = {name: value for name, value in row["model"].items() if value is not None and name != "quantiles"}
    rivals = {
        name: {"mae": row[name]["mae"]} for name in ("persistence", "seasonal_naive", "ridge") if row[name] is not None
    }
    return kept | {"model": model} | rivals | ({"interval": row["interval"]} if row["interval"] else {})


def _without(value: Any, names: set[str]) -> Any:
    """The same without these keys, however deep they are."""
    if isinstance(value, dict):
        return {key: _without(part, names) for key, part in value.items() if key not in names}
    return value


def _rounded(value: Any) -> Any:
    """The same with few digits, however deep it is."""
    if isinstance(value, float):
        return float(f"{value:.{SUMMARY_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
