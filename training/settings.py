"""The settings of a training, with ranges and defaults. This module imports neither torch nor anything else of ours.

The defaults suit a series of some ten thousand rows. Those of `Fit` were compared on `appliances` over four seeds.
"""

import csv
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

# The name of a model is a folder, and appears in metrics and addresses.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

# Half of the timesteps that a gradient reaches back by default: the network has learned to hold a value for so long.
FILL_GAPS = 12

Steps = Annotated[int, Field(ge=1)]
Link = Literal["linear", "last", "season", "features"]


def _split(value: Any) -> Any:
    """The parts of a text with commas; one that holds a comma itself stands in double quotes."""
    if not isinstance(value, str):
        return value
    parts = next(csv.reader([value], skipinitialspace=True), [])
    return tuple(part.strip() for part in parts if part.strip())


def as_typed(part: str) -> str:
    """A part of such a text as it is typed in a shell: quoted where a comma or a sign of the shell would be misread."""
    text = '"' + part.replace('"', '""') + '"' if set(part) & set(',"') else part
    return shlex.quote(text)


def name_of(data: str) -> str:
    """The name of a model by its data: that of the file without its suffixes, or of the folder of a pattern."""
    path = Path(data)
    stem = "stdin" if data == "-" else path.parent.name if set(data) & set("*?[") else path.stem
    if path.suffix in (".gz", ".zst", ".xz", ".bz2", ".zip"):
        stem = Path(stem).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "data"


def _rising(numbers: tuple[Any, ...]) -> tuple[Any, ...]:
    if not all(one < other for one, other in pairwise(numbers)):
        raise ValueError("rising numbers by commas, each once")
    return numbers


def _pairs(value: Any) -> Any:
    """The pairs of a text like `a=b,c=d`."""
    if not isinstance(value, str):
        return value
    parts = [part.partition("=") for part in _split(value)]
    if not all(name.strip() and unit.strip() for name, _, unit in parts):
        raise ValueError("NAME=TEXT, separated by commas")
    return {name.strip(): unit.strip() for name, _, unit in parts}


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Pairs = Annotated[dict[str, str], BeforeValidator(_pairs)]
Calendar = Annotated[tuple[Literal["day", "week", "year"], ...], BeforeValidator(_split)]
Links = Annotated[tuple[Link, ...], BeforeValidator(_split)]
Horizons = Annotated[tuple[Steps, ...], Field(min_length=1), BeforeValidator(_split), AfterValidator(_rising)]
Quantiles = Annotated[
    tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...], BeforeValidator(_split), AfterValidator(_rising)
]


class Settings(BaseModel):
    """Immutable settings without other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Format(Settings):
    """How a table is to be read. Each field overrules a guess; None lets the reader guess."""

    delimiter: str | None = Field(default=None, description="Between columns of a text file: , ; | tab or space.")
    decimal: Literal[".", ","] | None = Field(default=None, description="The decimal separator of numbers: . or ,")
    thousands: str | None = Field(
        default=None,
        description="What groups thousands in numbers: , . ' space or none; the decimal is the other sign.",
    )
    encoding: str | None = Field(default=None, description="The encoding of a text file, such as latin-1 or utf-16.")
    comment: str | None = Field(default=None, description="Lines that begin with this are left out. [default: #]")
    skip_lines: int | None = Field(default=None, ge=0, description="Lines before the line of names.")
    header: bool | None = Field(default=None, description="Whether the first line has the names of the columns.")
    units_row: bool | None = Field(default=None, description="Whether the line below the names has units.")
    sheet: str | None = Field(
        default=None, description="The sheet of a spreadsheet; by default the first with a table."
    )
    time_format: str | None = Field(
        default=None,
        description="How times are written: iso, day-first, month-first, year-first, exchanged, compact, s, ms, us, ns, "
        "excel, or a pattern such as '%d.%m.%Y %H:%M'.",
    )
    timezone: str | None = Field(
        default=None, description="The zone of local times, such as Europe/Berlin or +01:00; times become UTC."
    )
    missing_values: Names = Field(
        default=(),
        description="What means a missing value, beside the usual words: -999,Bad, or for one column flow=0; by commas.",
    )
    categories: Names = Field(
        default=(), description="Text columns whose words become numbers, in alphabetic order; separated by commas."
    )
    offset: Names = Field(
        default=(), description="A number to subtract from a column, as meter=123456000; separated by commas."
    )
    untimed: Literal["error", "drop"] = Field(default="error", description="What to do with rows that have no time.")
    duplicates: Literal["error", "first", "last", "mean"] = Field(
        default="error", description="What to do with rows of the same time."
    )
    resample: str | None = Field(
        default=None, description="One row for each such period, as 10min, 1h or 30s; the mean of each column."
    )
    resample_by: Names = Field(
        default=(), description="Columns with another value than the mean: rain=sum,door=last; separated by commas."
    )


class Source(Format):
    """The source of a series: enough to read the same rows and columns again."""

    data: str = Field(
        default="appliances",
        description="A named data set, a file (.csv, .parquet, .xlsx, .json, .npy, ...; also packed), a folder or a pattern "
        "of such files, or - for standard input.",
    )
    time: str | None = Field(
        default=None, description="The time column, or date and time by a comma; detected if there is only one."
    )
    period: float | None = Field(
        default=None, gt=0, description="Seconds from row to row, for a table without a time column."
    )
    group: str | None = Field(default=None, description="The column that assigns each row to one of several series.")
    split_by: str | None = Field(
        default=None, description="The column whose values a split keeps together, such as the person."
    )
    label: str | None = Field(default=None, description="The column with the class of each row.")
    columns: Names = Field(default=(), description="Use only these columns, separated by commas.")
    exclude: Names = Field(default=(), description="Leave out these columns, separated by commas.")
    known: Names = Field(
        default=(), description="Columns whose future values are known, for each horizon; separated by commas."
    )
    calendar: Calendar = Field(
        default=(), description="Add sine and cosine of the time of day, week or year; separated by commas."
    )
    units: Pairs = Field(
        default={}, description="The units of columns, as 'temp=°C,load=kW'; the report and every client show them."
    )
    fill_gaps: int = Field(
        default=FILL_GAPS,
        ge=0,
        description="A gap of at most so many rows in a regular series becomes missing values; a longer one cuts. 0: never.",
    )
    elapsed: bool = Field(
        default=False, description="Add the seconds since the last timestep; a gap then resets the state."
    )


class Shape(Settings):
    """The size and kind of the recurrent layers."""

    cell: Literal["lstm", "gru", "peephole", "peephole-previous", "rnn"] = Field(
        default="lstm", description="Kind of the recurrent layers."
    )
    activation: str = Field(default="tanh", description="Of candidate and output; not every cell takes each.")
    hidden: int = Field(default=64, ge=1, le=4096, description="Units of a layer.")
    layers: int = Field(default=1, ge=1, le=16, description="Recurrent layers.")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Between layers, and before the head.")
    kernel: int = Field(
        default=1, ge=1, le=1024, description="Timesteps of a causal convolution before the layers; 1: none."
    )
    filters: int = Field(default=32, ge=1, le=4096, description="Filters of that convolution.")
    memory: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="For long lags: initialise the gates to hold the state for 1 to so many timesteps.",
    )
    missing: Literal["mask", "last"] = Field(
        default="mask", description="mask: the cells also get a mask of missing values; last: only the last values."
    )
    changes: bool = Field(
        default=True, description="The cells also get the change of each feature since the last timestep."
    )
    level: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="on: the cells get the measured features relative to a running mean; auto: by the validation part.",
    )
    bidirectional: bool = Field(default=False, description="Refused: a stream has no future.")

    @field_validator("bidirectional")
    @classmethod
    def _refuse(cls, wanted: bool) -> bool:
        if wanted:
            raise ValueError("false: the backward half would need the future, and a stream has none when it is served")
        return wanted


class AlarmTimes(Settings):
    """The times of an alarm, in timesteps; `data.alarm_times` derives them from the data."""

    memory: Annotated[float, Field(ge=2.0)] = 500.0  # the running mean of errors and levels follows within so many
    slow: Annotated[float, Field(ge=1.0)] = 32.0  # slow faults are gathered over so many
    warm_up: Steps = 96  # a new stream raises no alarm before


class Forecast(Settings):
    """A forecast: `targets` are indices of features, `horizons` count timesteps.

    The forecast is a correction of the `links`: the last observed value of the target, its value one `season` of timesteps
    before the forecast time, each with a trained share, or a linear regression on all features. With the link `linear` it
    is a correction of a frozen regression on the last timesteps, up to the last of `lags`.
    """

    kind: Literal["forecast"] = "forecast"
    targets: tuple[int, ...] = Field(min_length=1)
    horizons: Horizons
    quantiles: Quantiles = ()
    links: Links = ("last",)
    season: int = Field(default=0, ge=0)
    lags: tuple[Steps, ...] = (1,)  # rising from 1
    follow: bool = False
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    alarm_rate: Annotated[float, Field(gt=0.0, lt=0.5)] | None = None
    alarm_times: AlarmTimes | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "season" in self.links and self.season < 2:
            raise ValueError(f"a link to the season needs a season of at least 2 timesteps, got {self.season}")
        return self


class Classify(Settings):
    """A classification of each timestep."""

    kind: Literal["classify"] = "classify"
    classes: tuple[str, ...] = Field(min_length=2)


class Elapsed(Settings):
    """The index of the feature with the seconds since the last timestep, and its meaning."""

    feature: int = Field(ge=0)
    usual_s: float = Field(gt=0)  # the usual step
    reset_s: float = Field(gt=0)  # a longer step resets the state


class Architecture(Shape):
    """A whole network; architecture and weights are enough to build it again."""

    features: Steps
    elapsed: Elapsed | None = None
    level_steps: int | None = Field(default=None, ge=1)  # its time constant; None: the layers see values as they are
    task: Annotated[Forecast | Classify, Field(discriminator="kind")]


# The default learning rate and weight decay of each optimizer. Those of adam and sgd were compared on `appliances` over two
# seeds and thirty epochs. AdamW reduces a weight by rate x decay x weight in each step; the others add decay x weight to the
# gradient.
OPTIMIZER_DEFAULTS = {"adamw": (4e-3, 1.0), "adam": (8e-3, 1e-4), "sgd": (0.3, 1e-3)}


class Fit(Settings):
    """The training. `learning_rate` and `weight_decay` are never None: by default they are those of the optimizer."""

    epochs: int = Field(default=60, ge=1, description="Stop after so many epochs.")
    minutes: float | None = Field(
        default=None, gt=0, description="Stop after so many minutes; the schedule fits into them. Depends on speed."
    )
    lanes: int = Field(default=16, ge=1, description="Batch size: parts of the series that are trained side by side.")
    chunk: int = Field(default=24, ge=1, description="Timesteps that a gradient reaches back.")
    burn_in: int = Field(default=24, ge=0, description="First timesteps of a sequence, which only warm up the state.")
    cold_share: float = Field(
        default=0.25, ge=0.0, le=1.0, description="Share of sequences that count from their first timestep."
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field(default="adamw", description="The optimizer.")
    learning_rate: float | None = Field(
        default=None, gt=0, description="The highest of the schedule; 0.004 for adamw, 0.008 for adam, 0.3 for sgd."
    )
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="Nesterov momentum of sgd.")
    schedule: Literal["cosine", "constant", "step", "plateau"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up."
    )
    warm_up: float = Field(default=0.05, ge=0.0, lt=1.0, description="Share of the training with a rising rate.")
    drop: float = Field(default=0.3, gt=0.0, lt=1.0, description="Factor of the rate at each drop of step and plateau.")
    drop_after: int = Field(
        default=10, ge=1, description="Epochs between two drops of step; epochs without a better score for plateau."
    )
    weight_decay: float | None = Field(
        default=None,
        ge=0.0,
        description="L2: of the weights for adamw (1), of the loss for adam (0.0001) and sgd (0.001).",
    )
    average: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="Decay of the moving average of the weights at each optimizer step."
    )
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    hide: float = Field(default=0.02, ge=0.0, lt=1.0, description="Share of values that are made missing at random.")
    keep: Literal["best", "last"] = Field(
        default="best",
        description="Keep the weights of the best epoch by validation score, or of the last; last for short validation parts.",
    )
    patience: int = Field(
        default=15,
        ge=1,
        description="Stop after so many epochs without a better validation score; with --keep last, never.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train; auto: on a GPU if there is one."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="The same seed gives the same weights.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("optimizer", "adamw") not in OPTIMIZER_DEFAULTS:
            return given
        rate, decay = OPTIMIZER_DEFAULTS[given.get("optimizer", "adamw")]
        asked = {name: value for name, value in given.items() if value is not None}
        return {"learning_rate": rate, "weight_decay": decay} | asked


class Request(Settings):
    """One training, from data to a version on disk. Shares are of the rows; the rest is held out."""

    source: Source
    shape: Shape = Shape()
    fit: Fit = Fit()
    task: Literal["forecast", "classify"] = Field(default="forecast", description="The task.")
    target: Names = Field(default=(), description="Columns to forecast, separated by commas.")
    horizons: Horizons = Field(default=(1, 6, 36, 144), description="Timesteps ahead, separated by commas.")
    quantiles: Quantiles = Field(
        default=(0.1, 0.5, 0.9), description="Quantiles of each forecast, separated by commas."
    )
    follow: bool = Field(default=True, description="The quantiles follow the errors of the forecasts in service.")
    links: Links = Field(
        default=("linear",),
        description="What a forecast corrects: linear, last, season or features; separated by commas.",
    )
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None, description="Add calibrated intervals with this long-run coverage."
    )
    alarm_rate: Annotated[float, Field(gt=0.0, lt=0.5)] | None = Field(
        default=None, description="Add an anomaly score, with an alarm in this long-run share of timesteps."
    )
    alarm_memory: str | None = Field(
        default=None,
        description="What is usual follows the data within so many timesteps (500) or such a time (12h); by default a "
        "fiftieth of the rows to learn from, at most a week.",
    )
    alarm_slow: str | None = Field(
        default=None,
        description="Gather slow faults over so many timesteps or such a time; by default a sixteenth of --alarm-memory.",
    )
    alarm_warm_up: str | None = Field(
        default=None,
        description="A new stream raises no alarm in so many timesteps or such a time; by default 24 to 96 timesteps.",
    )
    train_share: float = Field(default=0.70, gt=0, lt=1, description="Share of the rows to train on.")
    validation_share: float = Field(default=0.15, gt=0, lt=1, description="Share of the rows to validate on.")
    hold_out: Names = Field(
        default=(), description="With --split-by: hold out these values, separated by commas; by default random ones."
    )
    validate_on: Names = Field(
        default=(), description="With --split-by and --hold-out: validate on these values and train on the rest."
    )
    split_seed: int = Field(default=0, ge=0, lt=2**63, description="With --split-by: the seed of the random split.")
    season: Steps | None = Field(
        default=None, description="Timesteps of a season, for the baseline and the link; by default a day."
    )
    models: Path = Field(default=Path("models"), description="The folder of models.")
    name: str = Field(pattern=NAME, description="The name of the model; by default that of the data.")
    version: Steps | None = Field(default=None, description="The version to write; by default the next free one.")
    out: Path = Field(description="The run folder; by default a new one under runs/.")
    held_out: Path | None = Field(default=None, description="Write the held-out rows to this file, as CSV.")
    warm_start: Path | None = Field(
        default=None,
        description="Begin with the weights of this model, or of this run folder, and learn from data that has grown.",
    )
    resume: Path | None = Field(
        default=None, description="Resume the run of this folder; of its settings, --epochs may be raised."
    )


class Rolling(Settings):
    """A backtest: the end of the rows is cut into blocks of equal length; a model of the rows before scores each."""

    folds: int = Field(default=4, ge=2, le=100, description="The number of trainings.")
    start: float = Field(default=0.5, gt=0, lt=1, description="Share of the rows before the first scored block.")
    window: Steps | None = Field(
        default=None, description="Train on so many rows before a block; by default on all of them."
    )


class Search(Settings):
    """A hyperparameter search."""

    trials: int = Field(default=20, ge=1, description="The number of trials, in all processes together.")
    minutes: float | None = Field(default=None, gt=0, description="Start no trial after so many minutes.")
    trial_epochs: Steps = Field(default=20, description="Epochs of a trial; the best settings train for all --epochs.")
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe", description="How to choose settings: by earlier scores, at random, or all in turn."
    )
    pruner: Literal["median", "hyperband", "none"] = Field(
        default="median", description="How to stop trials that are worse than others at the same epoch."
    )
    search: str = Field(
        default="",
        description="Settings to try, as 'hidden=32,64;learning_rate=1e-3..1e-2', or a .toml or .json file of such.",
    )


def first_mistake(error: ValidationError) -> str:
    """The first validation error in our words: `learning-rate: got '-1', expected: greater than 0`."""
    mistake = error.errors()[0]
    word = str(mistake["loc"][0]).replace("_", "-") if mistake["loc"] else "settings"
    expected = (
        mistake["msg"].removeprefix("Input should be ").removeprefix("Value error, ").split(", unable to parse")[0]
    )
    return f"{word}: got {mistake['input']!r}, expected: {expected}"
