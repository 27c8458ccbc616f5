"""Monitors: they watch the forecasts of a network while it runs. Nothing here is trained by gradient.

`Intervals` puts an interval around each forecast and keeps its long-run coverage, whatever the series does.
`Alarm` scores how unexpected a timestep is. It raises an alarm in a stated share of the timesteps of clean data.

Laws:
1. A monitor knows one timestep, `step`; a sequence is a loop over it. A network in training has no monitors.
2. State is zero in a new stream: it holds counts, and offsets from buffers that `calibrate` fits before the export.
3. A missing value changes no estimate. Neither does a forecast that a new stream has not made yet.
4. All values are in scaled units until `raw`: the distance from the training mean in training standard deviations.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tidegate.training.network.cells import State
from tidegate.training.network.heads import Outputs
from tidegate.training.network.logarithm import logarithm
from tidegate.training.settings import Architecture, Classify, Forecast

# How far the half-width of an interval moves after a miss, in mean absolute deviations of the scores. It is divided by the
# root of the horizon: feedback comes so much later, and errors of neighbouring timesteps are alike. The error of the
# long-run coverage is the range of the half-width, divided by this and by the number of timesteps: 3,000 of them hold it
# to a per cent.
INTERVAL_RATE = 0.15
# A half-width of zero marks a forecast that a new stream has not made.
MIN_HALF_WIDTH = 1e-6

# The first timesteps of a stream raise no alarm, because neither the network nor the moments are warm. This is a day of
# quarter-hourly values; the errors of the network settle in a quarter of that.
WARM_UP_STEPS = 96.0
# The mean of the errors adapts within days of 10-minute values, their variance within a week. That is slower than any
# fault to be found, and faster than the seasons.
MEAN_RATE = 1 / 500
VARIANCE_RATE = 1 / 1000
# While the alarm is on, both adapt at this fraction of their rate, so that a fault does not become normal.
ALARM_RATE_FACTOR = 1 / 20
# An error counts for the moments up to this many standard deviations. Otherwise one spike would blind the alarm for a week.
CLIP = 5.0
# The logarithm of the smallest variance: after a calm week a sensor still has half of its usual error.
MIN_LOG_VARIANCE = math.log(0.25)

# The threshold is in nats of tail probability: with one more, e times fewer timesteps of clean data exceed it. A timestep
# with an alarm raises it by this much. At an alarm rate of 1 % it follows half of a shift in some 700 timesteps.
THRESHOLD_RATE = 0.1
# An alarm that lasts longer, or exceeds the threshold by more, is a fault and no false alarm. It does not move the
# threshold: otherwise each fault that is found would hide the next.
FALSE_ALARM_STEPS = 12.0
FALSE_ALARM_NATS = 4.0
# The threshold falls no lower, even if nothing unexpected ever happens.
MIN_THRESHOLD = 0.5


class Observation(NamedTuple):
    """One timestep as the network sees it: all (batch, features), in scaled units.

    `values` repeats the last value where one is missing. `previous` holds the values of the timestep before.
    """

    values: Tensor
    previous: Tensor
    missing: Tensor


class Monitor(nn.Module, ABC):
    """The interface of a monitor. `states` and `outputs` are names; each state is [batch, n], zero in a new stream."""

    states: tuple[str, ...]
    outputs: tuple[str, ...]
    widths: tuple[int, ...]  # n of each state
    targets: Tensor  # (targets,)
    # Moves the threshold of every decision. Only the parity gate sets it: a value on a threshold may round to either side,
    # and both decisions are right.
    threshold_shift: float = 0.0

    def initial_state(self, batch: int) -> State:
        """The state of streams that have not seen a timestep."""
        return tuple(torch.zeros(batch, width, device=self.targets.device) for width in self.widths)

    @abstractmethod
    def step(self, observation: Observation, head_outputs: Outputs, state: State) -> tuple[Outputs, State]:
        """One timestep and the head's outputs (batch, ...) for it, scaled -> own outputs, scaled, and the next state."""

    @abstractmethod
    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """The outputs as they are served; `mean` and `std` (features,) are those of the scaler."""

    def unit(self, output: str, std: Tensor) -> Tensor:  # noqa: ARG002  most outputs have no unit
        """The unit of a difference in an output; broadcasts over it."""
        return std.new_ones(())

    def above(self, value: Tensor, threshold: Tensor | float) -> Tensor:
        """Whether the value is above the threshold."""
        return value > (threshold + self.threshold_shift if self.threshold_shift else threshold)


class Intervals(Monitor):
    """Intervals whose long-run coverage is kept online.

    Conformalised quantile regression (Romano, Patterson and Candes, 2019) with a quantile tracker (Gibbs and Candes,
    2021; Angelopoulos, Candes and Tibshirani, Conformal PID Control, 2023).

    A forecast has a centre c and a half-width w. They come from the pair of quantiles nearest to the coverage; without
    such a pair c is the forecast and w is 0. The interval is c -/+ max(w + q, 0), so the ends cannot cross. The true value
    is known one horizon later. Then q rises by rate * coverage if it lies outside, and falls by rate * (1 - coverage) if it
    lies inside. The interval counts as it was served, whatever q has become since. So for every series the share of
    served intervals that hold the true value converges to the coverage.

    State: `intervals` [batch, n]. It holds the centres whose true values are not known yet, the oldest first, horizon by horizon, each
    with all targets; then their half-widths in the same order; then q less its start [horizons * targets].
    """

    outputs = ("interval",)
    states = ("intervals",)
    start: Tensor  # (horizons * targets,), q of a new stream
    scale: Tensor  # (horizons * targets,), mean absolute deviation of the scores
    step_size: Tensor  # (horizons * targets,), in units of the scale
    columns: Tensor  # (horizons * targets,), the forecast feature

    def __init__(self, task: Forecast, coverage: float) -> None:
        super().__init__()
        self.coverage = coverage
        self.pair = _pair(task.quantiles, coverage)
        self.horizons = task.horizons
        self.count = len(task.targets)
        self.shape = (len(task.horizons), self.count)
        size = math.prod(self.shape)
        # The parts of the state: for each horizon the forecast that is due now, then the others.
        self.parts = [part for horizon in task.horizons for part in (self.count, (horizon - 1) * self.count) if part]
        self.widths = (2 * sum(self.parts) + size,)
        step_size = torch.tensor([INTERVAL_RATE / math.sqrt(horizon) for horizon in task.horizons])
        self.register_buffer("start", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("step_size", step_size.repeat_interleave(self.count), persistent=False)
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("columns", self.targets.repeat(len(task.horizons)), persistent=False)

    def step(self, observation: Observation, head_outputs: Outputs, state: State) -> tuple[Outputs, State]:
        """`interval` (batch, horizons, targets, 2)."""
        *past, shift = torch.split(state[0], [*self.parts, *self.parts, len(self.start)], dim=-1)
        matured, waiting = self._mature(past)
        centre, half = torch.cat(matured, dim=-1).chunk(2, dim=-1)
        missed = self.above((observation.values.index_select(-1, self.columns) - centre).abs(), half)
        step = self.step_size * self.scale
        moved = torch.where(missed, step * self.coverage, step * (self.coverage - 1.0))
        unknown = (half <= 0.0) | observation.missing.index_select(-1, self.columns)
        shift = shift + torch.where(unknown, 0.0, moved)
        centre, half = self.band(head_outputs)
        half = torch.clamp(half + (self.start + shift), min=MIN_HALF_WIDTH)
        interval = torch.stack([centre - half, centre + half], dim=-1).reshape(-1, *self.shape, 2)
        new_forecasts = torch.split(torch.cat([centre, half], dim=-1), self.count, dim=-1)
        kept = [part for old, new in zip(waiting, new_forecasts, strict=True) for part in (*old, new)]
        return {"interval": interval}, (torch.cat([*kept, shift], dim=-1),)

    def _mature(self, past: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The forecasts that are due now, and those that wait: the centres of each horizon, then the half-widths."""
        parts = iter(past)
        matured, waiting = [], []
        for horizon in (*self.horizons, *self.horizons):
            matured.append(next(parts))
            waiting.append([next(parts)] if horizon > 1 else [])
        return matured, waiting

    def band(self, head_outputs: Outputs) -> tuple[Tensor, Tensor]:
        """Centre and half-width of a forecast: each (batch, horizons * targets)."""
        if self.pair is None:
            centre = head_outputs["forecast"].flatten(1)
            return centre, torch.zeros_like(centre)
        low, high = (head_outputs["quantiles"].select(-1, index).flatten(1) for index in self.pair)
        return (low + high) * 0.5, (high - low) * 0.5

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:
        """In the targets' units."""
        mean, std = mean[self.targets].unsqueeze(-1), std[self.targets].unsqueeze(-1)
        return {"interval": outputs["interval"] * std + mean}

    def unit(self, output: str, std: Tensor) -> Tensor:  # noqa: ARG002  there is one output
        """The targets' standard deviations."""
        return std[self.targets].unsqueeze(-1)


class AlarmStatistics(NamedTuple):
    """The statistics of a timestep that `Alarm` compares with their tails."""

    parts: Tensor  # (batch, 5 * targets): jump, reversal, level, flatline, missing run
    missing: Tensor  # (batch, 2 * targets)
    surprise: Tensor  # (batch, targets): the jump, signed
    deviation: Tensor  # (batch, 2 * targets): errors and levels, standardised, 0 where missing
    mean: Tensor  # (batch, 2 * targets): their running mean
    spread: Tensor  # (batch, 2 * targets): the logarithm of their running variance
    clock: tuple[Tensor, ...]  # each (batch, 1): timesteps, timesteps of this alarm, shift of the threshold


class Alarm(Monitor):
    """How unexpected a timestep is, and whether to raise an alarm.

    There are five statistics of every target. The most unexpected of all counts:

    - jump: the error of the last one-step forecast, less what the errors of the other targets explain.
    - reversal: the smaller of this jump and the last one, where they have opposite signs. Clean data often jumps and
      stays, but seldom jumps and returns. So this statistic finds spikes best.
    - level: the value less its linear regression on the other features. It finds drift and scale, which the one-step
      forecast follows.
    - flatline: the number of timesteps for which the value has not changed.
    - missing run: the number of timesteps for which it has been missing.

    Errors and levels are standardised by a slow running mean and variance. The tail of each statistic is a generalised
    Pareto distribution (Siffer et al., Anomaly Detection in Streams with Extreme Value Theory, 2017), so all are
    comparable, in nats: evidence r means that a share e^-r of the tail is as unexpected. The alarm is on where r is above
    a threshold t. The threshold tracks the quantile that belongs to the alarm rate. `score` is r / (r + t): above a half
    in an alarm, and 0 until the stream is `warm`. `surprise` is the jump of each target, in standard deviations.

    State: `watch` [batch, 8 * targets + 3]. Per target: the one-step forecast, the last signed jump, the running means and
    log variances of error and level, flatline, and missing run. Then the timesteps of the stream, the timesteps of this
    alarm, and the threshold less its start.
    """

    outputs = ("score", "alarm", "warm", "surprise")
    states = ("watch",)
    mix: Tensor  # (2 * targets, targets + features), errors and features -> standardised errors and levels
    offset: Tensor  # (2 * targets,)
    own: Tensor  # (targets, targets), removes from each error what the others explain
    tail: Tensor  # (3, 5 * targets): factor and summand within each logarithm, and the factor before it
    start: Tensor  # (1,), the threshold of a new stream
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
        # Before calibration: errors and levels as they are, and tails that begin at 1.
        own = torch.cat([torch.eye(count), torch.zeros(count, features)], dim=1)
        level = torch.cat([torch.zeros(count, count), torch.eye(features)[self.targets]], dim=1)
        self.register_buffer("mix", torch.cat([own, level]))
        self.register_buffer("offset", torch.zeros(2 * count))
        self.register_buffer("own", torch.eye(count))
        self.register_buffer("tail", torch.tensor([0.1, 0.9, 10.0])[:, None].repeat(1, 5 * count))
        self.register_buffer("start", torch.tensor([5.0]))

    def step(self, observation: Observation, head_outputs: Outputs, state: State) -> tuple[Outputs, State]:
        """`score`, `alarm` and `warm` (batch, 1), and `surprise` (batch, targets)."""
        return self.decide(self.measure(observation, state), head_outputs)

    def measure(self, observation: Observation, state: State) -> AlarmStatistics:
        """The statistics of a timestep, before the decision."""
        expected, previous_surprise, mean, spread, flatline, missing_run, *clock = torch.split(
            state[0], self.sizes, dim=-1
        )
        value = observation.values.index_select(-1, self.targets)
        missing = observation.missing.index_select(-1, self.twice)
        target_missing = missing[:, : self.count]
        mixed = nn.functional.linear(torch.cat([value - expected, observation.values], dim=-1), self.mix, self.offset)
        deviation = torch.where(missing, 0.0, (mixed - mean) * torch.exp(spread * -0.5))
        jump, level = deviation.chunk(2, dim=-1)
        surprise = torch.where(target_missing, 0.0, jump @ self.own)
        reversal = torch.maximum(
            torch.minimum(previous_surprise, -surprise), -torch.maximum(previous_surprise, -surprise)
        )
        same = value == observation.previous.index_select(-1, self.targets)
        # A missing value neither ends nor lengthens a flatline.
        flatline = torch.where(target_missing, flatline, torch.where(same, flatline + 1.0, 0.0))
        missing_run = torch.where(target_missing, missing_run + 1.0, 0.0)
        parts = torch.cat([surprise.abs(), reversal, level.abs(), flatline, missing_run], dim=-1)
        return AlarmStatistics(parts, missing, surprise, deviation, mean, spread, tuple(clock))

    def evidence(self, parts: Tensor) -> Tensor:
        """(..., 5 * targets) -> (..., 1), in nats: how far the most unexpected statistic lies in its tail."""
        factor, summand, before = self.tail
        inside = torch.clamp(parts * factor + summand, min=1.0)
        return torch.amax(logarithm(inside) * before, dim=-1, keepdim=True)

    def decide(self, statistics: AlarmStatistics, head_outputs: Outputs) -> tuple[Outputs, State]:
        """Decide whether there is an alarm, and update the state; `step` returns this."""
        steps, alarm_steps, shift = statistics.clock
        threshold = self.start + shift
        evidence = self.evidence(statistics.parts)
        warm = steps >= WARM_UP_STEPS
        score = torch.where(warm, evidence / (evidence + threshold), 0.0)
        alarm = self.above(score, 0.5)
        outputs = {
            "score": score,
            "alarm": alarm.to(score.dtype),
            "warm": warm.to(score.dtype),
            "surprise": statistics.surprise,
        }
        # The threshold rises after a false alarm has ended, and falls a little in each timestep without an alarm.
        finished = torch.where(alarm_steps > FALSE_ALARM_STEPS, 0.0, alarm_steps)
        moved = torch.where(warm ^ alarm, (finished - self.alarm_rate) * THRESHOLD_RATE, 0.0)
        shift = torch.maximum(shift + moved, MIN_THRESHOLD - self.start)
        increment = torch.where(self.above(evidence, threshold + FALSE_ALARM_NATS), FALSE_ALARM_STEPS + 1.0, 1.0)
        alarm_steps = torch.where(alarm, alarm_steps + increment, 0.0)
        rate = torch.where(statistics.missing, 0.0, torch.where(alarm, ALARM_RATE_FACTOR, 1.0))
        bounded = torch.clamp(statistics.deviation, -CLIP, CLIP)
        mean = statistics.mean + rate * (bounded * MEAN_RATE)
        spread = statistics.spread + rate * (bounded * bounded * VARIANCE_RATE - VARIANCE_RATE)
        spread = torch.clamp(spread, min=MIN_LOG_VARIANCE)
        expected = head_outputs["forecast"].select(1, self.next)
        run_lengths = statistics.parts[:, 3 * self.count :]
        steps = torch.clamp(steps + 1.0, max=WARM_UP_STEPS)
        return outputs, (
            torch.cat([expected, statistics.surprise, mean, spread, run_lengths, steps, alarm_steps, shift], dim=-1),
        )

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
    """The indices of two quantiles, symmetric around the median, whose coverage is nearest to the stated one."""
    pairs = [
        (low, high)
        for low, below in enumerate(quantiles)
        for high, above in enumerate(quantiles)
        if below < above and abs(below + above - 1.0) < 1e-6
    ]
    return min(pairs, key=lambda pair: abs(quantiles[pair[1]] - quantiles[pair[0]] - coverage), default=None)
