"""What a training can be asked to do, with ranges and defaults. Imports neither torch nor anything else of ours.

The defaults serve a series of ten thousand rows or so; those of `Fit` were compared on `appliances` over four seeds.
"""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

# A model's name is a folder and appears in metrics and addresses.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Steps = Annotated[int, Field(ge=1)]
Link = Literal["last", "season", "features"]


def _split(value: Any) -> Any:
    """What was typed with commas, as its parts."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _rising(numbers: tuple[Any, ...]) -> tuple[Any, ...]:
    if not all(one < other for one, other in pairwise(numbers)):
        raise ValueError("rising numbers by commas, each once")
    return numbers


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Calendar = Annotated[tuple[Literal["day", "week", "year"], ...], BeforeValidator(_split)]
Links = Annotated[tuple[Link, ...], BeforeValidator(_split)]
Horizons = Annotated[tuple[Steps, ...], Field(min_length=1), BeforeValidator(_split), AfterValidator(_rising)]
Quantiles = Annotated[
    tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...], BeforeValidator(_split), AfterValidator(_rising)
]


class Settings(BaseModel):
    """A set of values that does not change and knows no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Settings):
    """Where a series comes from: enough to read the same rows and columns again."""

    data: str = Field(default="appliances", description="A named data set, or a .csv, .parquet, .npy or .npz file.")
    time: str | None = Field(default=None, description="The time column; found by itself when there is only one.")
    period: float | None = Field(
        default=None, gt=0, description="Seconds from row to row, for a table without a time column."
    )
    group: str | None = Field(
        default=None, description="The column that says which of several series a row belongs to."
    )
    split_by: str | None = Field(
        default=None, description="The column whose values stay whole when the data is split, such as the person."
    )
    label: str | None = Field(default=None, description="The column with the class of each row.")
    columns: Names = Field(default=(), description="Take only these columns, by commas.")
    exclude: Names = Field(default=(), description="Leave these columns out, by commas.")
    known: Names = Field(
        default=(), description="Columns whose future is known and is given for each horizon, by commas."
    )
    calendar: Calendar = Field(
        default=(), description="Add sine and cosine of the time of day, week or year: those named, by commas."
    )
    elapsed: bool = Field(
        default=False, description="Add the seconds since the last timestep; a gap then makes the state fresh."
    )


class Shape(Settings):
    """The size and kind of the recurrent part."""

    cell: Literal["lstm", "gru", "peephole", "peephole-previous", "rnn"] = Field(
        default="lstm", description="Kind of the recurrent layers."
    )
    activation: str = Field(default="tanh", description="Of candidate and output; each cell says which it takes.")
    hidden: int = Field(default=64, ge=1, le=4096, description="Units of a layer.")
    layers: int = Field(default=1, ge=1, le=16, description="Recurrent layers.")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Between layers, and before the head.")
    kernel: int = Field(
        default=1, ge=1, le=1024, description="Timesteps that a causal convolution in front sees; 1: there is none."
    )
    filters: int = Field(default=32, ge=1, le=4096, description="Of that convolution.")
    memory: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="For long lags: the gates begin by holding the state for up to so many timesteps, each unit for another time.",
    )
    missing: Literal["mask", "last"] = Field(
        default="mask", description="mask: the cells are told which values are only held; last: they are not."
    )
    changes: bool = Field(
        default=True, description="The cells are told how far each feature has moved since the last timestep."
    )
    bidirectional: bool = Field(default=False, description="Refused: a stream has no future to look back from.")

    @field_validator("bidirectional")
    @classmethod
    def _refuse(cls, wanted: bool) -> bool:
        if wanted:
            raise ValueError("false: the backward half would need the future, and a stream has none when it is served")
        return wanted


class Forecast(Settings):
    """What comes next: `targets` are indices of features, `horizons` count timesteps.

    `links` say what the forecast is a correction of: the target's last seen value, its value one `season` of timesteps
    before the forecast time, each with a learned share, or a linear regression on all features.
    """

    kind: Literal["forecast"] = "forecast"
    targets: tuple[int, ...] = Field(min_length=1)
    horizons: Horizons
    quantiles: Quantiles = ()
    links: Links = ("last",)
    season: int = Field(default=0, ge=0)
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    alarm_rate: Annotated[float, Field(gt=0.0, lt=0.5)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "season" in self.links and self.season < 2:
            raise ValueError(f"a link to the season needs a season of at least 2 timesteps, got {self.season}")
        return self


class Classify(Settings):
    """Which class a timestep belongs to."""

    kind: Literal["classify"] = "classify"
    classes: tuple[str, ...] = Field(min_length=2)


class Elapsed(Settings):
    """The feature, by its index, that holds the seconds since the last timestep, and what they mean."""

    feature: int = Field(ge=0)
    usual_s: float = Field(gt=0)  # the usual step
    reset_s: float = Field(gt=0)  # after a longer one the state is that of a fresh stream


class Architecture(Shape):
    """A whole network; with the weights it is all that is needed to build it again."""

    features: Steps
    elapsed: Elapsed | None = None
    task: Annotated[Forecast | Classify, Field(discriminator="kind")]


# What each optimiser is usually given: the highest learning rate, and how much weights are shrunk. Those of adam and sgd were
# compared on `appliances` over two seeds and thirty epochs.
# AdamW shrinks a weight by rate x decay at each step; the others add decay x weight to the gradient.
USUAL = {"adamw": (4e-3, 1.0), "adam": (8e-3, 1e-4), "sgd": (0.3, 1e-3)}


class Fit(Settings):
    """How to learn. `learning_rate` and `weight_decay` are never None: what is not given is the optimiser's usual."""

    epochs: int = Field(default=60, ge=1, description="Stop after so many.")
    minutes: float | None = Field(
        default=None, gt=0, description="Stop after so long, with the schedule squeezed into it; depends on speed."
    )
    lanes: int = Field(default=16, ge=1, description="Rows of a batch.")
    chunk: int = Field(default=24, ge=1, description="Timesteps that a gradient reaches back.")
    burn_in: int = Field(default=24, ge=0, description="Timesteps that only warm the state up.")
    cold_share: float = Field(
        default=0.25, ge=0.0, le=1.0, description="Share of runs that count from their first timestep."
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field(default="adamw", description="What takes the steps.")
    learning_rate: float | None = Field(
        default=None, gt=0, description="The highest of the schedule; 0.004 for adamw, 0.008 for adam, 0.3 for sgd."
    )
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="Of sgd, after Nesterov.")
    schedule: Literal["cosine", "constant", "step", "plateau"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up."
    )
    warm_up: float = Field(default=0.05, ge=0.0, lt=1.0, description="Share of the training with a rising rate.")
    drop: float = Field(default=0.3, gt=0.0, lt=1.0, description="What step and plateau multiply the rate by.")
    drop_after: int = Field(
        default=10, ge=1, description="Epochs between two drops of step; epochs without a better score for plateau."
    )
    weight_decay: float | None = Field(
        default=None,
        ge=0.0,
        description="L2: of the weights for adamw (1), of the loss for adam (0.0001) and sgd (0.001).",
    )
    average: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="Share of the averaged weights kept at each optimiser step."
    )
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    hide: float = Field(default=0.02, ge=0.0, lt=1.0, description="Share of values made missing.")
    keep: Literal["best", "last"] = Field(
        default="best",
        description="Weights of which epoch: best by validation score, or last, where those who choose are too few to tell.",
    )
    patience: int = Field(
        default=40,
        ge=1,
        description="Stop after so many epochs without a better validation score; with --keep last, never.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to learn; auto: on a GPU if there is one."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="The same seed gives the same weights.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("optimizer", "adamw") not in USUAL:
            return given
        rate, decay = USUAL[given.get("optimizer", "adamw")]
        asked = {name: value for name, value in given.items() if value is not None}
        return {"learning_rate": rate, "weight_decay": decay} | asked


class Request(Settings):
    """One training, from data to a version on disk. Shares are of the rows; what they leave is held out."""

    source: Source
    shape: Shape = Shape()
    fit: Fit = Fit()
    task: Literal["forecast", "classify"] = Field(default="forecast", description="What to learn.")
    target: Names = Field(default=(), description="Columns to forecast, by commas.")
    horizons: Horizons = Field(default=(1, 6, 36, 144), description="How many timesteps ahead, by commas.")
    quantiles: Quantiles = Field(default=(0.1, 0.5, 0.9), description="Of each forecast, by commas.")
    links: Links = Field(
        default=("last",), description="What a forecast corrects: last, season or features, by commas."
    )
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None, description="Give intervals whose long-run coverage is kept at this share."
    )
    alarm_rate: Annotated[float, Field(gt=0.0, lt=0.5)] | None = Field(
        default=None, description="Give an anomaly score, with an alarm for this long-run share of timesteps."
    )
    train_share: float = Field(default=0.70, gt=0, lt=1, description="Share of the rows that teach.")
    validation_share: float = Field(default=0.15, gt=0, lt=1, description="Share of the rows that choose.")
    hold_out: Names = Field(
        default=(),
        description="Values of the column to split by that are held out, by commas; by chance when not given.",
    )
    validate_on: Names = Field(
        default=(), description="Of data split by wholes: these choose and the rest teaches; needs --hold-out."
    )
    split_seed: int = Field(
        default=0, ge=0, lt=2**63, description="Of the chance by which values of the column to split by are shared out."
    )
    season: Steps | None = Field(
        default=None, description="Timesteps of a season, for the baseline and the link; a day when not given."
    )
    models: Path = Field(default=Path("models"), description="The folder of models.")
    name: str = Field(pattern=NAME, description="The model's name; the data's name when not given.")
    version: Steps | None = Field(default=None, description="The version to write; the next free one when not given.")
    out: Path = Field(description="The run folder; a new one under runs/ when not given.")
    held_out: Path | None = Field(default=None, description="Write the rows that were not learned from, as CSV.")
    resume: Path | None = Field(
        default=None, description="Go on with the run of this folder; of its settings, --epochs may be raised."
    )


class Rolling(Settings):
    """A backtest: the end of the rows is cut into blocks of equal length; each is judged by a model of what was before."""

    folds: int = Field(default=4, ge=2, le=100, description="How many times to learn and judge.")
    start: float = Field(
        default=0.5, gt=0, lt=1, description="Share of the rows before the first block that is judged."
    )
    window: Steps | None = Field(
        default=None, description="Learn from so many rows before a block only; from all of them when not given."
    )


class Search(Settings):
    """A search for good settings."""

    trials: int = Field(
        default=20, ge=1, description="How many settings to try, in all processes and sittings together."
    )
    minutes: float | None = Field(default=None, gt=0, description="Begin no trial after so long.")
    trial_epochs: Steps = Field(default=20, description="Epochs of a trial; the best settings learn for all --epochs.")
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe", description="What picks settings: what has done well, chance, or one after the other."
    )
    pruner: Literal["median", "hyperband", "none"] = Field(
        default="median", description="What ends a trial that does worse than others did at its age."
    )
    search: str = Field(
        default="",
        description="Settings to try, as 'hidden=32,64;learning_rate=1e-3..1e-2', or a .toml or .json file of such.",
    )
