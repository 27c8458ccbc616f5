"""Monitors: what a network says of its own forecasts, timestep by timestep. Nothing here is learned by gradient.

`Intervals` keeps an interval around each forecast whose long-run coverage is the stated one, whatever the series does.
`Alarm` scores how unexpected a timestep is, and raises an alarm in a stated share of the timesteps of clean data.

Laws:
1. A monitor knows one timestep only, `step`; a sequence is a loop over it. It is not there while the network learns.
2. State is zero in a fresh stream: counts, and offsets from buffers that `calibrate` fits before the export.
3. A missing value teaches nothing, nor does a forecast that a young stream has not made yet.
4. Everything is in scaled units, the distance from the training mean in training standard deviations, until `raw`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.cells import State
from training.errors import SettingsError
from training.heads import Outputs
from training.settings import Architecture, Classify, Forecast

# Of an interval's half-width, in mean absolute deviations of the scores, for each forecast that is missed. The long-run
# coverage is off by the range that the width wanders through, divided by this and by the number of timesteps: a tenth of
# that range is forgotten in some hundred timesteps, and 10,000 timesteps hold the coverage to a per cent.
INTERVAL_RATE = 0.05

# A stream's first timesteps have a cold network and cold moments: they raise no alarm. A day of readings every quarter of
# an hour; the network's own errors are at rest after a quarter of that.
WARM_STEPS = 96
# The mean of the errors follows in some days of 10-minute readings, their variance in a week: slower than any fault that
# is to be found, quicker than the seasons.
MEAN_RATE = 1 / 500
VARIANCE_RATE = 1 / 1000
# While the alarm is on they follow at this part of their rate, so that a fault does not become normal.
ALARM_PACE = 1 / 20
# An error counts for the moments up to this many standard deviations: one spike must not blind for a week.
CLIP = 5.0
# A sensor that was calm for a week is not believed to have less than half of the usual error.
LEAST_VARIANCE = 0.25
# Beyond all meaning; keeps a value that float32 can hardly hold from becoming infinite, and then NaN.
MOST_DEVIATIONS = 1e6

# The threshold is in nats of tail probability: one more, and e times fewer timesteps of clean data are as unexpected.
# An alarm timestep lifts it by so much; at an alarm rate of 1 % it forgets half of a shift in some 700 timesteps.
THRESHOLD_RATE = 0.1
# An alarm that is longer than this, or further above the threshold than that, is no accident of clean data: it does not
# move the threshold, else each fault found would hide the next.
ACCIDENT_STEPS = 12.0
ACCIDENT_NATS = 4.0
# Where the threshold stays even if nothing unexpected ever happens.
LEAST_THRESHOLD = 0.5


class Reading(NamedTuple):
    """One timestep as the network sees it: all (batch, features), in scaled units.

    `seen` holds the last value where one is missing; `last` is what was seen the timestep before.
    """

    seen: Tensor
    last: Tensor
    missing: Tensor


class Monitor(nn.Module, ABC):
    """What a network asks of a monitor: `states` and `outputs` are names; each state is [batch, n], zero in a fresh stream."""

    states: tuple[str, ...]
    outputs: tuple[str, ...]
    widths: tuple[int, ...]  # n of each state
    targets: Tensor  # (targets,)

    def fresh_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep."""
        return tuple(torch.zeros(batch, width, device=self.targets.device) for width in self.widths)

    @abstractmethod
    def step(self, now: Reading, said: Outputs, state: State) -> tuple[Outputs, State]:
        """What was read, and what the head says of it (batch, ...) scaled -> own outputs, scaled, and the next state."""

    @abstractmethod
    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """The outputs as they are served; `mean` and `std` (features,) are those of the scaler."""

    def unit(self, output: str, std: Tensor) -> Tensor:  # noqa: ARG002  most outputs have no unit
        """What a difference in an output is measured in; broadcasts over it."""
        return std.new_ones(())


class Intervals(Monitor):
    """Intervals whose long-run coverage is kept online.

    Conformalised quantile regression (Romano, Patterson and Candes, 2019) with a quantile tracker (Angelopoulos, Candes
    and Tibshirani, Conformal PID Control, 2023; Gibbs and Candes, 2021). A forecast is a centre c and a half-width w, from
    the pair of quantiles nearest to the coverage, or the forecast itself and 0. When it comes true after `horizon`
    timesteps its score is s = |y - c| - w, which is how far the truth lies outside; and q += rate * (1{s > q} - (1 -
    coverage)). The interval is c -/+ max(w + q, 0): its ends cannot cross.

    State: `interval_past` [batch, n], the c and w of the forecasts that have not come true, the oldest first, horizon by
    horizon; `interval_steps` [batch, 1]; `interval_shift` [batch, horizons * targets], q less its start, in units of `scale`.
    """

    outputs = ("interval",)
    states = ("interval_past", "interval_steps", "interval_shift")
    start: Tensor  # (horizons, targets), q of a fresh stream
    scale: Tensor  # (horizons, targets), mean absolute deviation of the scores
    horizons: Tensor  # (horizons, 1)
    oldest: Tensor  # (horizons,)
    younger: Tensor  # (slots,)

    def __init__(self, task: Forecast, coverage: float) -> None:
        super().__init__()
        self.coverage = coverage
        self.pair = _pair(task.quantiles, coverage)
        self.shape = (len(task.horizons), len(task.targets))
        self.reach = task.horizons
        self.slots = sum(task.horizons)
        self.longest = float(max(task.horizons))
        self.block = self.shape[1] * (1 if self.pair is None else 2)
        self.widths = (self.slots * self.block, 1, self.shape[0] * self.shape[1])
        first = [sum(task.horizons[:index]) for index in range(self.shape[0])]
        # What follows a slot is the next of its horizon, and after the last the forecast that is made now.
        younger = [
            self.slots + index if step == horizon - 1 else first[index] + step + 1
            for index, horizon in enumerate(task.horizons)
            for step in range(horizon)
        ]
        self.register_buffer("start", torch.zeros(self.shape))
        self.register_buffer("scale", torch.ones(self.shape))
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("horizons", torch.tensor(task.horizons, dtype=torch.float32)[:, None], persistent=False)
        self.register_buffer("oldest", torch.tensor(first), persistent=False)
        self.register_buffer("younger", torch.tensor(younger), persistent=False)

    def step(self, now: Reading, said: Outputs, state: State) -> tuple[Outputs, State]:
        """`interval` (batch, horizons, targets, 2)."""
        past, steps, shift = state
        shift = shift.unflatten(-1, self.shape)
        made = self.band(said)  # (batch, horizons, block)
        known = torch.cat([past.reshape(-1, self.slots, self.block), made], dim=1)
        score = self.score(known.index_select(1, self.oldest), now.seen.index_select(-1, self.targets).unsqueeze(1))
        # 1 where a forecast comes true now: it was made, and there is a value.
        true = (steps.unsqueeze(-1) >= self.horizons) & ~now.missing.index_select(-1, self.targets).unsqueeze(1)
        missed = (score > self.start + self.scale * shift).to(score.dtype)
        shift = shift + true.to(score.dtype) * (INTERVAL_RATE * (missed - (1.0 - self.coverage)))
        centre, half = self._parts(made)
        half = torch.relu(half + (self.start + self.scale * shift))
        interval = torch.stack([centre - half, centre + half], dim=-1)
        steps = torch.clamp(steps + 1.0, max=self.longest)
        return {"interval": interval}, (known.index_select(1, self.younger).flatten(1), steps, shift.flatten(1))

    def band(self, said: Outputs) -> Tensor:
        """What a forecast says (..., horizons, block): the centres of all targets and, of quantiles, the half-widths."""
        if self.pair is None:
            return said["forecast"]
        low, high = (said["quantiles"].select(-1, index) for index in self.pair)
        return torch.cat([(low + high) * 0.5, (high - low) * 0.5], dim=-1)

    def score(self, band: Tensor, truth: Tensor) -> Tensor:
        """How far the truth (..., targets) lies outside a forecast; negative inside."""
        centre, half = self._parts(band)
        return (truth - centre).abs() - half

    def _parts(self, band: Tensor) -> tuple[Tensor, Tensor]:
        if self.pair is None:
            return band, torch.zeros_like(band)
        centre, half = band.chunk(2, dim=-1)
        return centre, half

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """In the targets' units."""
        mean, std = mean[self.targets].unsqueeze(-1), std[self.targets].unsqueeze(-1)
        return {"interval": outputs["interval"] * std + mean}

    def unit(self, output: str, std: Tensor) -> Tensor:  # noqa: ARG002  there is one output
        """The targets' standard deviations."""
        return std[self.targets].unsqueeze(-1)


class Look(NamedTuple):
    """What is unusual about a timestep, see `Alarm`."""

    parts: Tensor  # (batch, 5 * targets): jump, return, level, still, gone
    present: Tensor  # (batch, 2 * targets): 1 where errors and levels are known
    surprise: Tensor  # (batch, targets): the jump, signed
    deviation: Tensor  # (batch, 2 * targets): errors and levels in their usual deviations
    size: Tensor  # (batch, 2 * targets): those deviations


class Alarm(Monitor):
    """How unexpected a timestep is, and whether that is worth an alarm.

    Five parts are looked at, each for every target, and the most unexpected of all counts:

    - jump: the error of the forecast that was made a timestep ago, less what the errors of the other targets explain.
    - return: the smaller of this timestep's and the last one's, where they have opposite signs. A value that goes and
      comes back is a spike, or noise; a change that stays is life. So it is rare in clean data, and sees spikes best.
    - level: the value less what the other features say it should be, by linear regression. Sees drift and scale, which
      the one-step forecast follows.
    - still: for how long the value has been exactly the same.
    - gone: for how long it has been missing.

    The first three are less a slow mean and over a slow standard deviation of their own. Each part's tail is a generalised
    Pareto distribution (Siffer et al., Anomaly Detection in Streams with Extreme Value Theory, 2017), so that all are in
    nats: evidence r means that e^-r of the tail is as unexpected. The alarm is on where r is above a threshold t that
    tracks the quantile which belongs to the alarm rate. `score` is r / (r + t): above a half where there is an alarm.

    State, [batch, n]: `expected`, the forecast of this timestep; `surprised`, the last jump, signed; `usual_mean` and
    `usual_spread`, of errors and levels, the spread less 1; `lasting`, how long each target is the same and is missing;
    `alarm_clock`: timesteps seen, timesteps of this alarm, and the threshold less its start.
    """

    outputs = ("score", "alarm", "warm", "surprise")
    states = ("expected", "surprised", "usual_mean", "usual_spread", "lasting", "alarm_clock")
    bias: Tensor  # (targets,), the usual one-step error
    spread: Tensor  # (targets,), its standard deviation
    own: Tensor  # (targets, targets), what of all errors is a target's own
    level: Tensor  # (targets, features), what of all features is a target's own level
    offset: Tensor  # (targets,)
    tail: Tensor  # (3, 5 * targets): where each tail begins, the factor within the logarithm, and that before it
    start: Tensor  # (1,), the threshold of a fresh stream

    def __init__(self, task: Forecast, features: int, alarm_rate: float) -> None:
        super().__init__()
        check_alarm(task)
        count = len(task.targets)
        self.alarm_rate = alarm_rate
        self.count = count
        self.next = task.horizons.index(1)
        self.widths = (count, count, 2 * count, 2 * count, 2 * count, 3)
        self.register_buffer("bias", torch.zeros(count))
        self.register_buffer("spread", torch.ones(count))
        self.register_buffer("own", torch.eye(count))
        self.register_buffer("level", torch.eye(features)[list(task.targets)])
        self.register_buffer("offset", torch.zeros(count))
        # Until it is calibrated: the tail begins at one standard deviation, or after one timestep.
        self.register_buffer("tail", torch.tensor([1.0, 0.1, 10.0])[:, None].repeat(1, 5 * count))
        self.register_buffer("start", torch.tensor([5.0]))
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)

    def step(self, now: Reading, said: Outputs, state: State) -> tuple[Outputs, State]:
        """`score`, `alarm` and `warm` (batch, 1), and `surprise` (batch, targets)."""
        return self.follow(self.look(now, state), said, state)

    def follow(self, look: Look, said: Outputs, state: State) -> tuple[Outputs, State]:
        """Judge what a timestep looks like, and learn from it."""
        mean, spread = state[2], state[3]
        steps, burst, shift = state[5].split(1, dim=-1)
        threshold = self.start + shift
        evidence = self.evidence(look.parts)
        warm = (steps >= WARM_STEPS).to(steps.dtype)
        score = warm * (evidence / (evidence + threshold))
        alarm = (score > 0.5).to(score.dtype)
        # Up by the alarm that has just ended, if it was an accident; down a little for each timestep without one.
        ended = burst * (burst <= ACCIDENT_STEPS).to(burst.dtype)
        shift = shift + (warm - alarm) * (THRESHOLD_RATE * (ended - self.alarm_rate))
        shift = torch.maximum(shift, LEAST_THRESHOLD - self.start)
        far = (evidence > threshold + ACCIDENT_NATS).to(burst.dtype)
        burst = alarm * (burst + 1.0 + ACCIDENT_STEPS * far)
        clock = torch.cat([torch.clamp(steps + 1.0, max=WARM_STEPS), burst, shift], dim=-1)
        pace = look.present * (1.0 - (1.0 - ALARM_PACE) * alarm)
        moved = torch.clamp(look.deviation, -CLIP, CLIP) * look.size
        mean = mean + (MEAN_RATE * pace) * moved
        spread = spread + (VARIANCE_RATE * pace) * (moved * moved - (1.0 + spread))
        spread = torch.clamp(spread, min=LEAST_VARIANCE - 1.0)
        outputs = {"score": score, "alarm": alarm, "warm": warm, "surprise": look.surprise}
        expected = said["forecast"].select(1, self.next)
        return outputs, (expected, look.surprise, mean, spread, look.parts[:, 3 * self.count :], clock)

    def evidence(self, parts: Tensor) -> Tensor:
        """(..., 5 * targets) -> (..., 1), in nats: how far the most unexpected part lies in its tail."""
        begin, within, before = self.tail
        return (torch.log(torch.relu(parts - begin) * within + 1.0) * before).amax(dim=-1, keepdim=True)

    def look(self, now: Reading, state: State) -> Look:
        """What is unusual about a timestep, before it is judged."""
        expected, surprised, mean, spread, lasting, clock = state
        value, last = now.seen.index_select(-1, self.targets), now.last.index_select(-1, self.targets)
        here = 1.0 - now.missing.index_select(-1, self.targets).to(value.dtype)
        # A fresh stream has no forecast to compare its first value with.
        present = (here * torch.clamp(clock[:, :1], max=1.0)).repeat(1, 2)
        error = (value - expected - self.bias) / self.spread
        level = nn.functional.linear(now.seen, self.level, self.offset)
        size = torch.sqrt(spread + 1.0)
        deviation = torch.clamp(
            (torch.cat([error, level], dim=-1) - mean) / size, -MOST_DEVIATIONS, MOST_DEVIATIONS
        )
        jump, high = (deviation * present).split(self.count, dim=-1)
        surprise = here * (jump @ self.own)
        returned = torch.maximum(torch.minimum(surprised, -surprise), -torch.maximum(surprised, -surprise))
        still, gone = lasting.split(self.count, dim=-1)
        # A missing value neither ends nor lengthens standing still.
        still = torch.where(now.missing.index_select(-1, self.targets), still, (still + 1.0) * (value == last).to(value.dtype))
        gone = (gone + 1.0) * (1.0 - here)
        parts = torch.cat([surprise.abs(), returned, high.abs(), still, gone], dim=-1)
        return Look(parts, present, surprise, deviation, size)

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:  # noqa: ARG002  a score has no unit
        """As they are."""
        return outputs


def build_monitors(architecture: Architecture) -> list[Monitor]:
    """The monitors that the task asks for.

    Raises:
        SettingsError: an alarm is asked for without a forecast of the next timestep.
    """
    task = architecture.task
    if isinstance(task, Classify):
        return []
    monitors: list[Monitor] = []
    if task.coverage is not None:
        monitors.append(Intervals(task, task.coverage))
    if task.alarm_rate is not None:
        monitors.append(Alarm(task, architecture.features, task.alarm_rate))
    return monitors


def check_alarm(task: Forecast) -> None:
    """See that an alarm, if one is asked for, has the forecasts that it needs.

    Raises:
        SettingsError: the next timestep is not among the horizons.
    """
    if task.alarm_rate is not None and 1 not in task.horizons:
        asked = ",".join(str(horizon) for horizon in task.horizons)
        raise SettingsError(
            f"horizons: got {asked}, expected 1 among them, because an alarm compares each timestep with its forecast; "
            f"add 1 to --horizons or leave out --alarm-rate"
        )


def _pair(quantiles: Sequence[float], coverage: float) -> tuple[int, int] | None:
    """The places of the two quantiles, as far below the median as above it, whose coverage is nearest to the wanted one."""
    pairs = [
        (low, high)
        for low, below in enumerate(quantiles)
        for high, above in enumerate(quantiles)
        if below < above and abs(below + above - 1.0) < 1e-6
    ]
    return min(pairs, key=lambda pair: abs(quantiles[pair[1]] - quantiles[pair[0]] - coverage), default=None)
