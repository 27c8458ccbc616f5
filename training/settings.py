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
    missing: Literal["mask", "last"] = Field(
        default="mask", description="mask: the cells are told which values are only held; last: they are not."
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


class Fit(Settings):
    """How to learn."""

    epochs: int = Field(default=60, ge=1, description="Stop after so many.")
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="Stop after so long; the schedule is squeezed into it, the result depends on speed.",
    )
    lanes: int = Field(default=16, ge=1, description="Rows of a batch.")
    chunk: int = Field(default=24, ge=1, description="Timesteps that a gradient reaches back.")
    burn_in: int = Field(default=24, ge=0, description="Timesteps that only warm the state up.")
    cold_share: float = Field(
        default=0.25, ge=0.0, le=1.0, description="Share of the runs that count from their first timestep."
    )
    learning_rate: float = Field(default=4e-3, gt=0, description="The highest of the schedule.")
    warm_up: float = Field(default=0.05, ge=0.0, lt=1.0, description="Share of the training in which the rate rises.")
    weight_decay: float = Field(default=1.0, ge=0.0, description="Of AdamW.")
    average: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="Share of the averaged weights that each optimiser step keeps."
    )
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    hide: float = Field(default=0.02, ge=0.0, lt=1.0, description="Share of values made missing.")
    patience: int = Field(default=40, ge=1, description="Stop after so many epochs without a better validation score.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="The same seed gives the same weights.")


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


class Rolling(Settings):
    """A backtest: the end of the rows is cut into blocks of equal length; each is judged by a model of what was before."""

    folds: int = Field(default=4, ge=2, le=100, description="How many times to learn and judge.")
    start: float = Field(
        default=0.5, gt=0, lt=1, description="Share of the rows before the first block that is judged."
    )
    window: Steps | None = Field(
        default=None, description="Learn from so many rows before a block only; from all of them when not given."
    )
