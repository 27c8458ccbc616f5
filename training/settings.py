"""What a training can be asked to do, with ranges and defaults. Imports neither torch nor anything else of ours.

The defaults serve a series of ten thousand rows or so; those of `Fit` were compared on `appliances` over four seeds.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

# A model's name is a folder and appears in metrics and addresses.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Steps = Annotated[int, Field(ge=1)]
Link = Literal["last", "season"]


def _rising(quantiles: tuple[float, ...]) -> tuple[float, ...]:
    if sorted(set(quantiles)) != list(quantiles) or not all(0.0 < quantile < 1.0 for quantile in quantiles):
        raise ValueError("rising numbers between 0 and 1, such as 0.1,0.5,0.9")
    return quantiles


Quantiles = Annotated[tuple[float, ...], AfterValidator(_rising)]


class Settings(BaseModel):
    """A set of values that does not change and knows no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Settings):
    """Where a series comes from: enough to read the same rows and columns again."""

    data: str
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
    columns: tuple[str, ...] = Field(default=(), description="Take only these columns.")
    exclude: tuple[str, ...] = Field(default=(), description="Leave these columns out.")
    known: tuple[str, ...] = Field(
        default=(), description="Columns whose future is known, given for each horizon as well."
    )
    calendar: tuple[Literal["day", "week", "year"], ...] = Field(
        default=(), description="Add sine and cosine of the time of day, week or year."
    )
    elapsed: bool = Field(
        default=False, description="Add the seconds since the last timestep; a gap then makes the state fresh."
    )


class Shape(Settings):
    """The size and kind of the recurrent part."""

    cell: Literal["lstm", "gru", "peephole", "peephole-previous", "rnn"] = "lstm"
    activation: str = "tanh"  # of candidate and output; each cell says which it takes
    hidden: int = Field(default=64, ge=1, le=4096)
    layers: int = Field(default=1, ge=1, le=16)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)  # between layers
    kernel: int = Field(default=1, ge=1, le=1024)  # timesteps that a causal convolution in front sees; 1: there is none
    filters: int = Field(default=32, ge=1, le=4096)  # of that convolution
    missing: Literal["mask", "last"] = "mask"  # whether the cells are told which values are only held
    bidirectional: bool = False

    @field_validator("bidirectional")
    @classmethod
    def _refuse(cls, wanted: bool) -> bool:
        if wanted:
            raise ValueError("false: the backward half would need the future, and a stream has none when it is served")
        return wanted


class Interval(Settings):
    """Intervals whose coverage is kept online, see `monitors`."""

    coverage: float = Field(default=0.8, gt=0.0, lt=1.0)


class Anomaly(Settings):
    """A score of how unexpected a timestep is, see `monitors`."""

    alarm_rate: float = Field(default=0.001, gt=0.0, lt=0.5)  # long-run share of timesteps with an alarm


class Forecast(Settings):
    """What comes next: `targets` are indices of features, `horizons` count timesteps.

    `links` say what the forecast is a correction of: the target's last seen value, its value one `season` of timesteps
    before the forecast time, or both, each with a learned share.
    """

    kind: Literal["forecast"] = "forecast"
    targets: tuple[int, ...] = Field(min_length=1)
    horizons: tuple[Steps, ...] = Field(min_length=1)
    quantiles: Quantiles = ()
    links: tuple[Link, ...] = ("last",)
    season: int = Field(default=0, ge=0)
    interval: Interval | None = None
    anomaly: Anomaly | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "season" in self.links and self.season < 2:
            raise ValueError(f"a link to the season needs a season of at least 2 timesteps, got {self.season}")
        return self


class Classify(Settings):
    """Which class a timestep belongs to."""

    kind: Literal["classify"] = "classify"
    classes: tuple[str, ...] = Field(min_length=2)


class Architecture(Shape):
    """A whole network; with the weights it is all that is needed to build it again."""

    features: Steps
    task: Annotated[Forecast | Classify, Field(discriminator="kind")]


class Fit(Settings):
    """How to learn."""

    epochs: int = Field(default=60, ge=1)
    minutes: float | None = Field(default=None, gt=0)  # of wall time; the schedule is squeezed into it
    lanes: int = Field(default=16, ge=1)  # rows of a batch
    chunk: int = Field(default=24, ge=1)  # timesteps that a gradient reaches back
    burn_in: int = Field(default=24, ge=0)  # timesteps that only warm the state up
    cold_share: float = Field(default=0.25, ge=0.0, le=1.0)  # of runs that count from their first timestep
    learning_rate: float = Field(default=4e-3, gt=0)
    warm_up: float = Field(default=0.05, ge=0.0, lt=1.0)  # share of the training
    weight_decay: float = Field(default=1.0, ge=0.0)
    average: float = Field(default=0.99, ge=0.0, lt=1.0)  # share of the averaged weights kept at each optimiser step
    clip: float = Field(default=1.0, gt=0)  # norm of the gradient
    hide: float = Field(default=0.02, ge=0.0, lt=1.0)  # share of values made missing
    patience: int = Field(default=40, ge=1)  # epochs without a better validation score
    seed: int = Field(default=0, ge=0, lt=2**63)


class Request(Settings):
    """One training, from data to a version on disk. Shares are of the rows; what they leave is held out."""

    source: Source
    task: Literal["forecast", "classify"] = "forecast"
    targets: tuple[str, ...] = ()  # the data set's own when empty
    horizons: tuple[Steps, ...] = Field(default=(1, 6, 36, 144), min_length=1)
    quantiles: Quantiles = (0.1, 0.5, 0.9)
    links: tuple[Link, ...] = ("last",)
    interval: Interval | None = None
    anomaly: Anomaly | None = None
    shape: Shape = Shape()
    fit: Fit = Fit()
    train_share: float = Field(default=0.70, gt=0, lt=1)
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    season: Steps | None = None
    models: Path = Path("models")
    name: str = Field(pattern=NAME)
    hold_out: tuple[str, ...] = Field(default=(), description="Values of the column to split by that are held out.")
    split_seed: int = Field(
        default=0, ge=0, lt=2**63, description="Which values of the column to split by teach, choose and are held out."
    )
    version: Steps | None = None
    out: Path
    held_out: Path | None = None
