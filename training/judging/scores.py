"""The scores of a model, and their JSON for `card.json`, `--json` and the report.

This module knows no model and no formula. All scores are of the exported graph, replayed step by step over the held-out part.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from tidegate.training.data.gaps import Absence

# Rows of the table in the metadata of a graph, which every client of the server may request.
SUMMARY_ROWS = 32
# Digits of a number there.
SUMMARY_DIGITS = 5


@dataclass(frozen=True)
class Quantile:
    """The pinball loss of a quantile in the unit of the target, and how often the true value is at most the quantile."""

    level: float
    pinball: float
    below: float


@dataclass(frozen=True)
class Error:
    """The errors of one model or baseline, in the unit of the target.

    `mase` is the MAE divided by that of the naive forecast on the training part; None if that is unknown. `pinball` is the
    mean over the quantiles; `coverage` and `width` are those of the interval from the lowest to the highest. They are None,
    and `quantiles` is empty, if there are no quantiles.
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
    """The calibrated interval of the graph: its nominal coverage, its observed coverage, and its mean width."""

    nominal: float | None
    coverage: float
    width: float


@dataclass(frozen=True)
class Score:
    """One target at one horizon: the model beside its baselines, on the same `count` timesteps.

    A baseline is None if there is no season for it, or no training part to fit it on.
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
    def baselines(self) -> dict[str, Error]:
        """The baselines that there are, by name."""
        named = {"persistence": self.persistence, "seasonal_naive": self.seasonal_naive, "ridge": self.ridge}
        return {name: error for name, error in named.items() if error is not None}

    @property
    def wins(self) -> bool:
        """Whether the model's MAE is below that of every baseline."""
        return all(self.model.mae < baseline.mae for baseline in self.baselines.values())

    @property
    def skill(self) -> float:
        """1 - MAE of the model / MAE of the best baseline: 0 is no better, 1 is perfect."""
        least = min(baseline.mae for baseline in self.baselines.values())
        return 1.0 - self.model.mae / least if least > 0 else -math.inf


@dataclass(frozen=True)
class ColdStartErrors:
    """The errors of new streams at one target and horizon, beside those of a long stream.

    For a classification `target` is "class", `horizon` is 0 and an error is a wrong class.

    Attributes:
        cold: the mean error of new streams in each band of `ColdStart`.
        warm: the mean error of the long stream on the same timesteps.
        settled: after how many timesteps new streams are as good as the long one, to within `ColdStart.tolerance` in every
            later band; None if they are not by the last band.
    """

    target: str
    horizon: int
    cold: tuple[float, ...]
    warm: tuple[float, ...]
    settled: int | None


@dataclass(frozen=True)
class ColdStart:
    """How long a new stream needs to be as good as a long one; `streams` of them begin all over the held-out part.

    `steps` are the last timesteps of the bands: with (1, 2, 5, 10) the third band holds timesteps 3 to 5 of a stream.
    """

    streams: int
    steps: tuple[int, ...]
    tolerance: float
    table: tuple[ColdStartErrors, ...]


@dataclass(frozen=True)
class ClassError:
    """The scores of one classifier by timestep, and by recording.

    `recording_accuracy` is the share of the recordings whose class is right: that with the largest mean probability.
    `recording_cross_entropy` is the mean over recordings of their mean cross-entropy by timestep.
    """

    accuracy: float
    macro_f1: float
    cross_entropy: float
    perplexity: float
    recording_accuracy: float
    recording_cross_entropy: float


@dataclass(frozen=True)
class Confidence:
    """The timesteps whose likeliest class has a probability in [low, high).

    `said` is the mean of that probability, `right` how often the class was right. The names are those of the JSON.
    """

    low: float
    high: float
    count: int
    said: float
    right: float


@dataclass(frozen=True)
class ClassScores:
    """Classification: the model beside its baselines, on the same `count` labelled timesteps of `recordings`.

    `frequencies` always predicts the class frequencies of the training part. `linear` is least squares over a window.
    `confusion[i][j]` counts how often class i was predicted as class j. The macro F1 is the mean over the classes that
    occur or are predicted. `unlearned` are the classes that occur, but not in the training part.
    """

    classes: tuple[str, ...]
    count: int
    recordings: int
    model: ClassError
    frequencies: ClassError | None
    linear: ClassError | None
    confusion: tuple[tuple[int, ...], ...]
    confidence: tuple[Confidence, ...]
    unlearned: tuple[str, ...] = ()

    @property
    def counts(self) -> tuple[int, ...]:
        """The timesteps of each class."""
        return tuple(sum(row) for row in self.confusion)

    @property
    def baselines(self) -> dict[str, ClassError]:
        """The baselines that there are, by name."""
        named = {"frequencies": self.frequencies, "linear": self.linear}
        return {name: error for name, error in named.items() if error is not None}

    @property
    def lost(self) -> tuple[str, ...]:
        """The baselines that the model does not beat in both accuracy and cross-entropy."""
        return tuple(
            name
            for name, baseline in self.baselines.items()
            if not (self.model.accuracy > baseline.accuracy and self.model.cross_entropy < baseline.cross_entropy)
        )

    @property
    def absent(self) -> tuple[str, ...]:
        """The classes without a timestep: nothing is known of how the model recognises them."""
        return tuple(name for name, count in zip(self.classes, self.counts, strict=True) if not count)

    @property
    def wins(self) -> bool:
        """Whether the model beats every baseline, and has learned from every class that it was asked for."""
        return not self.lost and not self.unlearned


@dataclass(frozen=True)
class Detection:
    """The scores of one detector on injected faults and on clean data.

    Attributes:
        found, events: faults found, and all faults; by kind in `kinds`.
        during: faults found before their end, and not by the jump back.
        false_alarms: bursts of alarms that belong to no fault.
        precision, recall, f1: of events; precision is None without an alarm.
        auc_pr: average precision of the score by timestep.
        delay: the median number of timesteps from the start of a found fault to its first alarm; None if none was found.
        clean_alarms: bursts of alarms on the clean held-out part; `clean_alarms_a_day` if the period is known.
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
    """The faults of one kind: how many were found, and their median delay."""

    kind: str
    found: int
    events: int
    delay: float | None


@dataclass(frozen=True)
class AnomalyScores:
    """Anomalies: the graph beside PCA (T2 and Q), at a threshold with as many false alarms on the clean part.

    Faults were injected into `columns` of `copies` of the held-out part. `tolerance` is in timesteps, see `events`.
    `alarm_rate` is the nominal share of clean timesteps with an alarm.
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
    """All scores; sections that do not apply are empty or None.

    `mase_scale` holds the divisor of the MASE by target: the mean absolute error of the naive forecast on the training
    part, seasonal if there is a season. `anomaly_left_out` says in sentences what was not measured of an alarm, and why.
    `missing_baselines` holds, by name, why a baseline is not in every row of the table.
    `absent` counts the rows that the scored spans lack, and `left_out` those of the data that were not scored, because the
    model has learned from their time.
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
    anomaly_left_out: str | None = None
    cold_start: ColdStart | None = None
    missing_baselines: dict[str, str] = field(default_factory=dict)
    absent: Absence | None = None
    left_out: int = 0

    @property
    def shares(self) -> dict[int, float]:
        """The share of the timesteps that is scored at each horizon; of several targets the smallest."""
        shares: dict[int, float] = {}
        for score in self.table:
            share = score.count / max(self.rows, 1)
            shares[score.horizon] = min(share, shares.get(score.horizon, share))
        return shares

    @property
    def wins(self) -> bool:
        """Whether the model beats every baseline: at every horizon of every target, or in its classes."""
        return all(score.wins for score in self.table) and (self.classification is None or self.classification.wins)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for the card and for `--json`; the keys are the names of the fields."""
        full = asdict(self)
        full["table"] = [
            asdict(score) | _derived_scores(score) | {"share": score.count / max(self.rows, 1)} for score in self.table
        ]
        for name, section in (("classification", self.classification), ("anomaly", self.anomaly)):
            if section is not None:
                full[name] |= {"beats_baselines": section.wins}
        if self.classification:
            full["classification"] |= {"absent": list(self.classification.absent)}
        return full | {"beats_baselines": self.wins}

    def summary(self) -> dict[str, Any]:
        """A short form for the metadata of the graph: few digits, no curves, no matrix, and only the MAE of baselines."""
        full = self.as_json()
        rows = [_short_row(row) for row in full["table"][:SUMMARY_ROWS]]
        small = {name: full[name] for name in ("data", "start", "end", "rows", "season")} | {"table": rows}
        if len(rows) < len(self.table):
            small["rows_left_out"] = len(self.table) - len(rows)
        if self.anomaly_left_out:
            small["anomaly_left_out"] = self.anomaly_left_out
        for name in ("classification", "anomaly"):
            if full[name] is not None:
                small[name] = {
                    key: value for key, value in full[name].items() if key not in {"confusion", "confidence", "columns"}
                }
        if self.cold_start is not None:
            settled = [start.settled for start in self.cold_start.table]
            small["settled"] = None if None in settled else max(step for step in settled if step is not None)
        rounded: dict[str, Any] = _rounded(small | {"beats_baselines": self.wins})
        return rounded


def _derived_scores(score: Score) -> dict[str, Any]:
    return {"skill": score.skill, "beats_baselines": score.wins}


def _short_row(row: dict[str, Any]) -> dict[str, Any]:
    """All errors of the model except single quantiles, and the MAE of the baselines."""
    kept = {name: row[name] for name in ("target", "unit", "horizon", "count", "skill", "beats_baselines")}
    model = {name: value for name, value in row["model"].items() if value is not None and name != "quantiles"}
    baselines = {
        name: {"mae": row[name]["mae"]} for name in ("persistence", "seasonal_naive", "ridge") if row[name] is not None
    }
    return kept | {"model": model} | baselines | ({"interval": row["interval"]} if row["interval"] else {})


def _rounded(value: Any) -> Any:
    """The value with few digits, at every depth."""
    if isinstance(value, float):
        return float(f"{value:.{SUMMARY_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
