"""Monitors: what a network says of its own forecasts, timestep by timestep. Nothing here is learned by gradient.

`Intervals` keeps an interval around each forecast whose long-run coverage is the stated one, whatever the series does.
`Alarm` scores how unexpected a timestep is, and raises an alarm in a stated share of the timesteps of clean data.

Laws:
1. A monitor knows one timestep only, `step`; a sequence is a loop over it. It is not there while the network learns.
2. State is zero in a fresh stream: counts, and offsets from buffers that `calibrate` fits before the export.
3. A missing value teaches nothing, nor does a forecast that a young stream has not made yet.
4. Everything is in scaled units, the distance from the training mean in training standard deviations, until `raw`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.network.cells import State
from training.network.heads import Outputs
from training.network.logarithm import logarithm
from training.settings import Architecture, Classify, Forecast

# How far an interval's half-width moves for a forecast that is missed, in mean absolute deviations of the scores and
# divided by the root of the horizon: what is learned of a forecast comes so much later, and errors of neighbouring
# timesteps are alike. The long-run coverage is off by the range that the half-width wanders through, divided by this and
# by the number of timesteps: 3,000 of them hold it to a per cent.
INTERVAL_RATE = 0.15
# Of an interval: a half-width of zero marks a forecast that a young stream has not made.
LEAST_HALF = 1e-6

# A stream's first timesteps have a cold network and cold moments: they raise no alarm. A day of readings every quarter of
# an hour; the network's own errors are at rest after a quarter of that.
WARM_STEPS = 96.0
# The mean of the errors follows in some days of 10-minute readings, their variance in a week: slower than any fault that
# is to be found, quicker than the seasons.
MEAN_RATE = 1 / 500
VARIANCE_RATE = 1 / 1000
# While the alarm is on they follow at this part of their rate, so that a fault does not become normal.
ALARM_PACE = 1 / 20
# An error counts for the moments up to this many standard deviations: one spike must not blind for a week.
CLIP = 5.0
# A sensor that was calm for a week is not believed to have less than half of its usual error: logarithm of the variance.
LEAST_SPREAD = math.log(0.25)

# The threshold is in nats of tail probability: one more, and e times fewer timesteps of clean data are as unexpected.
# An alarm timestep lifts it by so much; at an alarm rate of 1 % half of a shift is followed in some 700 timesteps.
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
    # Moves every decision's threshold. Only the parity gate does: two roundings of a value that lies on a threshold decide
    # differently, and both are right.
    nudge: float = 0.0

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

    def above(self, value: Tensor, threshold: Tensor | float) -> Tensor:
        """Decide whether the value is above the threshold."""
        return value > (threshold + self.nudge if self.nudge else threshold)


class Intervals(Monitor):
    """Intervals whose long-run coverage is kept online.

    Conformalised quantile regression (Romano, Patterson and Candes, 2019) with a quantile tracker (Gibbs and Candes,
    2021; Angelopoulos, Candes and Tibshirani, Conformal PID Control, 2023). A forecast is a centre c and a half-width w,
    from the pair of quantiles nearest to the coverage, or the forecast itself and 0. Its interval is c -/+ max(w + q, 0), so
    the ends cannot cross. When it comes true, the horizon later, q += rate * (1 - coverage subtracted from 1 if the truth
    lies outside, from 0 if inside). What was served is what is counted, whatever q has become since: so the share of
    served intervals that hold the truth goes to the coverage for every series, however it changes.

    State: `intervals` [batch, n]: the centres that have not come true, the oldest first, horizon by horizon, each with all
    targets; in the same order their half-widths; q less its start [horizons * targets].
    """

    outputs = ("interval",)
    states = ("intervals",)
    start: Tensor  # (horizons * targets,), q of a fresh stream
    scale: Tensor  # (horizons * targets,), mean absolute deviation of the scores
    pace: Tensor  # (horizons * targets,), rate in units of the scale
    columns: Tensor  # (horizons * targets,), the feature that each is a forecast of

    def __init__(self, task: Forecast, coverage: float) -> None:
        super().__init__()
        self.coverage = coverage
        self.pair = _pair(task.quantiles, coverage)
        self.horizons = task.horizons
        self.count = len(task.targets)
        self.shape = (len(task.horizons), self.count)
        size = math.prod(self.shape)
        # The parts of the state: of each horizon the forecast that comes true now, and the others.
        self.parts = [part for horizon in task.horizons for part in (self.count, (horizon - 1) * self.count) if part]
        self.widths = (2 * sum(self.parts) + size,)
        pace = torch.tensor([INTERVAL_RATE / math.sqrt(horizon) for horizon in task.horizons])
        self.register_buffer("start", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("pace", pace.repeat_interleave(self.count), persistent=False)
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("columns", self.targets.repeat(len(task.horizons)), persistent=False)

    def step(self, now: Reading, said: Outputs, state: State) -> tuple[Outputs, State]:
        """`interval` (batch, horizons, targets, 2)."""
        *past, shift = torch.split(state[0], [*self.parts, *self.parts, len(self.start)], dim=-1)
        due, waiting = self._due(past)
        centre, half = torch.cat(due, dim=-1).chunk(2, dim=-1)
        missed = self.above((now.seen.index_select(-1, self.columns) - centre).abs(), half)
        step = self.pace * self.scale
        moved = torch.where(missed, step * self.coverage, step * (self.coverage - 1.0))
        unknown = (half <= 0.0) | now.missing.index_select(-1, self.columns)
        shift = shift + torch.where(unknown, 0.0, moved)
        centre, half = self.band(said)
        half = torch.clamp(half + (self.start + shift), min=LEAST_HALF)
        interval = torch.stack([centre - half, centre + half], dim=-1).reshape(-1, *self.shape, 2)
        made = torch.split(torch.cat([centre, half], dim=-1), self.count, dim=-1)
        kept = [part for old, new in zip(waiting, made, strict=True) for part in (*old, new)]
        return {"interval": interval}, (torch.cat([*kept, shift], dim=-1),)

    def _due(self, past: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """What comes true now, and what still waits: of each horizon, first the centres, then the half-widths."""
        parts = iter(past)
        due, waiting = [], []
        for horizon in (*self.horizons, *self.horizons):
            due.append(next(parts))
            waiting.append([next(parts)] if horizon > 1 else [])
        return due, waiting

    def band(self, said: Outputs) -> tuple[Tensor, Tensor]:
        """Centre and half-width of a forecast: each (batch, horizons * targets)."""
        if self.pair is None:
            centre = said["forecast"].flatten(1)
            return centre, torch.zeros_like(centre)
        low, high = (said["quantiles"].select(-1, index).flatten(1) for index in self.pair)
        return (low + high) * 0.5, (high - low) * 0.5

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
    missing: Tensor  # (batch, 2 * targets)
    surprise: Tensor  # (batch, targets): the jump, signed
    deviation: Tensor  # (batch, 2 * targets): errors and levels in their usual deviations, 0 where missing
    mean: Tensor  # (batch, 2 * targets): what is usual of them
    spread: Tensor  # (batch, 2 * targets): logarithm of their variance
    clock: tuple[Tensor, ...]  # each (batch, 1): timesteps, timesteps of this alarm, shift of the threshold


class Alarm(Monitor):
    """How unexpected a timestep is, and whether that is worth an alarm.

    Five parts are looked at, each for every target, and the most unexpected of all counts:

    - jump: the error of the forecast that was made a timestep ago, less what the errors of the other targets explain.
    - return: the smaller of this timestep's jump and the last one's, where they have opposite signs. A value that goes
      and comes back is a spike, or noise; a change that stays is life. So it is rare in clean data, and sees spikes best.
    - level: the value less what the other features say it should be, by linear regression. Sees drift and scale, which
      the one-step forecast follows.
    - still: for how many timesteps the value has been exactly the same.
    - gone: for how many it has been missing.

    Errors and levels are less a slow mean and over a slow standard deviation of their own. Each part's tail is a
    generalised Pareto distribution (Siffer et al., Anomaly Detection in Streams with Extreme Value Theory, 2017), so that
    all are in nats: evidence r means that a share e^-r of the tail is as unexpected. The alarm is on where r is above a
    threshold t that tracks the quantile which belongs to the alarm rate. `score` is r / (r + t), above a half where
    there is an alarm, and 0 until the stream is `warm`. `surprise` is the jump of each target, in standard deviations.

    State: `watch` [batch, 8 * targets + 3]: the forecast of the next timestep and the last jump, signed, of each target;
    mean and logarithm of the variance of errors and levels; how long each target has been the same, and missing;
    timesteps seen, timesteps of this alarm, and the threshold less its start.
    """

    outputs = ("score", "alarm", "warm", "surprise")
    states = ("watch",)
    mix: Tensor  # (2 * targets, targets + features), from errors and features to errors and levels in standard deviations
    offset: Tensor  # (2 * targets,)
    own: Tensor  # (targets, targets), what of all errors is a target's own
    tail: Tensor  # (3, 5 * targets): factor and summand within each part's logarithm, and the factor before it
    start: Tensor  # (1,), the threshold of a fresh stream
    twice: Tensor  # (2 * targets,), the targets, two times

    def __init__(self, task: Forecast, features: int, alarm_rate: float) -> None:
        super().__init__()
        assert 1 in task.horizons  # see `prepare.check_alarm`
        count = len(task.targets)
        self.alarm_rate = alarm_rate
        self.count = count
        self.next = task.horizons.index(1)
        self.sizes = [count, count, 2 * count, 2 * count, count, count, 1, 1, 1]
        self.widths = (sum(self.sizes),)
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("twice", self.targets.repeat(2), persistent=False)
        # Until it is calibrated: errors and levels as they are, and tails that begin at 1.
        own = torch.cat([torch.eye(count), torch.zeros(count, features)], dim=1)
        level = torch.cat([torch.zeros(count, count), torch.eye(features)[self.targets]], dim=1)
        self.register_buffer("mix", torch.cat([own, level]))
        self.register_buffer("offset", torch.zeros(2 * count))
        self.register_buffer("own", torch.eye(count))
        self.register_buffer("tail", torch.tensor([0.1, 0.9, 10.0])[:, None].repeat(1, 5 * count))
        self.register_buffer("start", torch.tensor([5.0]))

    def step(self, now: Reading, said: Outputs, state: State) -> tuple[Outputs, State]:
        """`score`, `alarm` and `warm` (batch, 1), and `surprise` (batch, targets)."""
        return self.judge(self.look(now, state), said)

    def look(self, now: Reading, state: State) -> Look:
        """What is unusual about a timestep, before it is judged."""
        expected, surprised, mean, spread, still, gone, *clock = torch.split(state[0], self.sizes, dim=-1)
        value = now.seen.index_select(-1, self.targets)
        missing = now.missing.index_select(-1, self.twice)
        lost = missing[:, : self.count]
        mixed = nn.functional.linear(torch.cat([value - expected, now.seen], dim=-1), self.mix, self.offset)
        deviation = torch.where(missing, 0.0, (mixed - mean) * torch.exp(spread * -0.5))
        jump, level = deviation.chunk(2, dim=-1)
        surprise = torch.where(lost, 0.0, jump @ self.own)
        returned = torch.maximum(torch.minimum(surprised, -surprise), -torch.maximum(surprised, -surprise))
        same = value == now.last.index_select(-1, self.targets)
        # A missing value neither ends nor lengthens standing still.
        still = torch.where(lost, still, torch.where(same, still + 1.0, 0.0))
        gone = torch.where(lost, gone + 1.0, 0.0)
        parts = torch.cat([surprise.abs(), returned, level.abs(), still, gone], dim=-1)
        return Look(parts, missing, surprise, deviation, mean, spread, tuple(clock))

    def evidence(self, parts: Tensor) -> Tensor:
        """(..., 5 * targets) -> (..., 1), in nats: how far the most unexpected part lies in its tail."""
        factor, summand, before = self.tail
        inside = torch.clamp(parts * factor + summand, min=1.0)
        return torch.amax(logarithm(inside) * before, dim=-1, keepdim=True)

    def judge(self, look: Look, said: Outputs) -> tuple[Outputs, State]:
        """Whether it is worth an alarm; and learn from it, as `step` does."""
        steps, burst, shift = look.clock
        threshold = self.start + shift
        evidence = self.evidence(look.parts)
        warm = steps >= WARM_STEPS
        score = torch.where(warm, evidence / (evidence + threshold), 0.0)
        alarm = self.above(score, 0.5)
        outputs = {
            "score": score,
            "alarm": alarm.to(score.dtype),
            "warm": warm.to(score.dtype),
            "surprise": look.surprise,
        }
        # Up by the alarm that has just ended, if it was an accident; down a little for each timestep without one.
        ended = torch.where(burst > ACCIDENT_STEPS, 0.0, burst)
        moved = torch.where(warm ^ alarm, (ended - self.alarm_rate) * THRESHOLD_RATE, 0.0)
        shift = torch.maximum(shift + moved, LEAST_THRESHOLD - self.start)
        far = torch.where(self.above(evidence, threshold + ACCIDENT_NATS), ACCIDENT_STEPS + 1.0, 1.0)
        burst = torch.where(alarm, burst + far, 0.0)
        pace = torch.where(look.missing, 0.0, torch.where(alarm, ALARM_PACE, 1.0))
        bounded = torch.clamp(look.deviation, -CLIP, CLIP)
        mean = look.mean + pace * (bounded * MEAN_RATE)
        spread = look.spread + pace * (bounded * bounded * VARIANCE_RATE - VARIANCE_RATE)
        spread = torch.clamp(spread, min=LEAST_SPREAD)
        expected = said["forecast"].select(1, self.next)
        lasting = look.parts[:, 3 * self.count :]
        steps = torch.clamp(steps + 1.0, max=WARM_STEPS)
        return outputs, (torch.cat([expected, look.surprise, mean, spread, lasting, steps, burst, shift], dim=-1),)

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:  # noqa: ARG002  a score has no unit
        """As they are."""
        return outputs


def build_monitors(architecture: Architecture) -> list[Monitor]:
    """The monitors that the task asks for; an alarm needs a forecast of the next timestep."""
    task = architecture.task
    if isinstance(task, Classify):
        return []
    monitors: list[Monitor] = []
    if task.coverage is not None:
        monitors.append(Intervals(task, task.coverage))
    if task.alarm_rate is not None:
        monitors.append(Alarm(task, architecture.features, task.alarm_rate))
    return monitors


def _pair(quantiles: Sequence[float], coverage: float) -> tuple[int, int] | None:
    """The places of the two quantiles, as far below the median as above it, whose coverage is nearest to the wanted one."""
    pairs = [
        (low, high)
        for low, below in enumerate(quantiles)
        for high, above in enumerate(quantiles)
        if below < above and abs(below + above - 1.0) < 1e-6
    ]
    return min(pairs, key=lambda pair: abs(quantiles[pair[1]] - quantiles[pair[0]] - coverage), default=None)
