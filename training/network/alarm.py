"""The alarm: it scores how unexpected a timestep is, and raises an alarm in a stated share of the timesteps of clean data.

It sees a timestep in three ways: by itself, gathered over some time so that slow faults add up, and across all targets.
Its laws are those of `monitors`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tidegate.training.network.cells import State
from tidegate.training.network.heads import Outputs
from tidegate.training.network.logarithm import logarithm
from tidegate.training.network.monitors import Monitor, Observation
from tidegate.training.settings import AlarmTimes, Forecast

# The running variance follows half as fast as the running mean: it needs more values.
VARIANCE_FACTOR = 2.0
# A new stream begins with the variance and the mean error of the fit, which count as much as this number of its own timesteps.
PRIOR_STEPS = 64.0
# The errors of a new stream count for no estimate in this share of its warm-up: the network has to settle first.
UNSETTLED_SHARE = 0.25
# While the alarm is on, the variance adapts at this fraction of its rate, so that a fault does not become normal at once.
# The mean goes on: a level that wanders would otherwise leave it behind, and one false alarm would last for ever.
ALARM_VARIANCE_FACTOR = 1 / 4
# An error counts for the moments and for slow statistics up to this many standard deviations. Otherwise one spike would
# blind the alarm for a long time.
CLIP = 5.0
# The logarithm of the smallest variance: after a calm week a sensor still has half of its usual error.
MIN_LOG_VARIANCE = math.log(0.25)

# The threshold is in nats of tail probability: with one more, e times fewer timesteps of clean data exceed it. A timestep
# with an alarm raises it by the step size, one without lowers it by the step size times the alarm rate. A quantile that n
# values were seen of is followed best with a step size of 1 / (n * rate). It begins with the rows of the fit, and never
# falls below the smaller bound, so that the threshold goes on following: at 1 % half of a shift in some 700 timesteps.
MIN_STEP_SIZE, MAX_STEP_SIZE = 0.1, 0.5
# An alarm raises the threshold for at most so many timesteps. One that exceeds it by more than so many nats is a fault and
# no false alarm, and does not raise it at all: otherwise each fault that is found would hide the next.
FALSE_ALARM_STEPS = 12.0
FALSE_ALARM_NATS = 4.0
# From this timestep of an alarm on the moving averages begin again from zero, as a cumulative chart does after its signal. Where
# levels wander they would otherwise hold one alarm for a hundred timesteps, as many as the rate allows in ten thousand. The
# threshold counts only a few of them (FALSE_ALARM_STEPS), so it would fall. A fault that lasts raises the next alarm.
RESTART_STEPS = 6.0
# Marks an alarm that is no false one: its count of timesteps goes on from here.
FAR = 2.0**20
# The threshold falls no lower, even if nothing unexpected ever happens.
MIN_THRESHOLD = 0.5

# Statistics of each target, then statistics of all targets together, see `Alarm`.
TARGET_PARTS = 7
JOINT_PARTS = 2


class AlarmStatistics(NamedTuple):
    """The statistics of a timestep that `Alarm` compares with their tails."""

    parts: Tensor  # (batch, 7 * targets + 2), in the order of `Alarm`
    skipped: Tensor  # (batch, 2 * targets): errors and levels that change no estimate
    surprise: Tensor  # (batch, targets): the jump, signed
    deviation: Tensor  # (batch, 2 * targets): errors and levels, standardised, 0 where missing
    mean: Tensor  # (batch, 2 * targets): their running mean
    spread: Tensor  # (batch, 2 * targets): the logarithm of their running variance
    slow: Tensor  # (batch, 2 * targets): their moving average
    run_lengths: Tensor  # (batch, 2 * targets): flatline and missing run
    clock: tuple[Tensor, ...]  # each (batch, 1): timesteps, timesteps of this alarm, shift of the threshold


class Alarm(Monitor):
    """How unexpected a timestep is, and whether to raise an alarm.

    There are seven statistics of every target:

    - jump: the error of the last one-step forecast, less what the errors of the other targets explain.
    - reversal: the smaller of this jump and the last one, where they have opposite signs. Clean data often jumps and
      stays, but seldom jumps and returns. So this statistic finds spikes best.
    - level: the value less its linear regression on the other features. It finds drift and scale, which the one-step
      forecast follows.
    - slow jump and slow level: the same of the exponentially weighted moving averages of errors and levels (EWMA, Roberts,
      1959). A small fault adds up there while noise averages out. In an alarm that lasts they begin again from zero.
    - flatline: the number of timesteps for which the value has not changed.
    - missing run: the number of timesteps for which it has been missing.

    Two statistics are of all targets together: the Mahalanobis distance of the errors from zero, and that of their moving
    averages (MEWMA, Lowry and others, 1992). They find what is spread over several sensors. The most unexpected of all
    statistics counts.

    Errors and levels are standardised by a slow running mean and variance. In a young stream the mean of a level is its
    plain mean, so that a stream is compared with itself. The tail of each statistic is a generalised Pareto distribution (Siffer et al.,
    Anomaly Detection in Streams with Extreme Value Theory, 2017), so all are comparable, in nats: evidence r means that a
    share e^-r of the tail is as unexpected. The alarm is on where r is above a threshold t. The threshold tracks the
    quantile that belongs to the alarm rate. `score` is r / (r + t): above a half in an alarm, and 0 until the stream is
    `warm`. `surprise` is the jump of each target, in standard deviations.

    State: `watch` [batch, 10 * targets + 3]. Per target: the one-step forecast, the last signed jump, the running means, log
    variances and moving averages of error and level, flatline, and missing run. Then the timesteps of the stream, the
    timesteps of this alarm, and the threshold less its start.
    """

    outputs = ("score", "alarm", "warm", "surprise")
    states = ("watch",)
    mix: Tensor  # (2 * targets, targets + features), errors and features -> standardised errors and levels
    offset: Tensor  # (2 * targets,)
    own: Tensor  # (targets, targets), removes from each error what the others explain
    white: Tensor  # (targets, targets), makes the errors independent of each other
    tail: Tensor  # (3, 7 * targets + 2): factor and summand within each logarithm, and the factor before it
    start: Tensor  # (1,), the threshold of a new stream
    fitted: Tensor  # (1,), the timesteps that the threshold was fitted on
    twice: Tensor  # (2 * targets,), the targets, two times

    def __init__(self, task: Forecast, features: int, alarm_rate: float) -> None:
        super().__init__()
        assert 1 in task.horizons  # see `prepare.check_alarm`
        count = len(task.targets)
        self.alarm_rate = alarm_rate
        self.times = task.alarm_times or AlarmTimes()
        # From here on nothing depends on the number of timesteps.
        self.settled = max(self.times.warm_up, self.times.memory, 1.0 / (MIN_STEP_SIZE * alarm_rate))
        self.count = count
        self.next = task.horizons.index(1)
        self.sizes = [count, count, 2 * count, 2 * count, 2 * count, 2 * count, 1, 1, 1]
        self.widths = (sum(self.sizes),)
        self.register_buffer("targets", torch.tensor(task.targets), persistent=False)
        self.register_buffer("twice", self.targets.repeat(2), persistent=False)
        # Before calibration: errors and levels as they are, and tails that begin at 1.
        own = torch.cat([torch.eye(count), torch.zeros(count, features)], dim=1)
        level = torch.cat([torch.zeros(count, count), torch.eye(features)[self.targets]], dim=1)
        self.register_buffer("mix", torch.cat([own, level]))
        self.register_buffer("offset", torch.zeros(2 * count))
        self.register_buffer("own", torch.eye(count))
        self.register_buffer("white", torch.eye(count))
        parts = TARGET_PARTS * count + JOINT_PARTS
        self.register_buffer("tail", torch.tensor([0.1, 0.9, 10.0])[:, None].repeat(1, parts))
        self.register_buffer("start", torch.tensor([5.0]))
        self.register_buffer("fitted", torch.tensor([0.0]))

    def step(self, observation: Observation, head_outputs: Outputs, state: State) -> tuple[Outputs, State]:
        """`score`, `alarm` and `warm` (batch, 1), and `surprise` (batch, targets)."""
        return self.decide(self.measure(observation, state), head_outputs)

    def measure(self, observation: Observation, state: State) -> AlarmStatistics:
        """The statistics of a timestep, before the decision."""
        expected, previous_surprise, mean, spread, slow, run_lengths, *clock = torch.split(state[0], self.sizes, dim=-1)
        value = observation.values.index_select(-1, self.targets)
        missing = observation.missing.index_select(-1, self.twice)
        target_missing = missing[:, : self.count]
        mixed = nn.functional.linear(torch.cat([value - expected, observation.values], dim=-1), self.mix, self.offset)
        deviation = torch.where(missing, 0.0, (mixed - mean) / torch.exp(spread * 0.5))
        unsettled = clock[0] < UNSETTLED_SHARE * self.times.warm_up
        skipped = torch.cat([target_missing | unsettled, target_missing], dim=-1)
        bounded = torch.clamp(deviation, -CLIP, CLIP)
        slow = torch.where(skipped, slow, slow + (bounded - slow) * (1.0 / self.times.slow))
        error, level = deviation.chunk(2, dim=-1)
        slow_error, slow_level = slow.chunk(2, dim=-1)
        surprise = torch.where(target_missing, 0.0, error @ self.own)
        reversal = torch.maximum(
            torch.minimum(previous_surprise, -surprise), -torch.maximum(previous_surprise, -surprise)
        )
        same = value == observation.previous.index_select(-1, self.targets)
        flatline, missing_run = run_lengths.chunk(2, dim=-1)
        # A missing value neither ends nor lengthens a flatline.
        flatline = torch.where(target_missing, flatline, torch.where(same, flatline + 1.0, 0.0))
        missing_run = torch.where(target_missing, missing_run + 1.0, 0.0)
        run_lengths = torch.cat([flatline, missing_run], dim=-1)
        single = [surprise.abs(), reversal, level.abs(), (slow_error @ self.own).abs(), slow_level.abs(), run_lengths]
        joint = [_length(error @ self.white), _length(slow_error @ self.white)]
        parts = torch.cat([*single, *joint], dim=-1)
        return AlarmStatistics(parts, skipped, surprise, deviation, mean, spread, slow, run_lengths, tuple(clock))

    def evidence(self, parts: Tensor) -> Tensor:
        """(..., 7 * targets + 2) -> (..., 1), in nats: how far the most unexpected statistic lies in its tail."""
        factor, summand, before = self.tail
        inside = torch.clamp(parts * factor + summand, min=1.0)
        return torch.amax(logarithm(inside) * before, dim=-1, keepdim=True)

    def decide(self, statistics: AlarmStatistics, head_outputs: Outputs) -> tuple[Outputs, State]:
        """Decide whether there is an alarm, and update the state; `step` returns this."""
        steps, alarm_steps, shift = statistics.clock
        threshold = self.start + shift
        evidence = self.evidence(statistics.parts)
        warm = steps >= self.times.warm_up
        score = torch.where(warm, evidence / (evidence + threshold), 0.0)
        alarm = self.above(score, 0.5)
        outputs = {
            "score": score,
            "alarm": alarm.to(score.dtype),
            "warm": warm.to(score.dtype),
            "surprise": statistics.surprise,
        }
        # The threshold rises after a false alarm has ended, and falls a little in each timestep without an alarm.
        step_size = torch.clamp(1.0 / ((self.fitted + steps) * self.alarm_rate), MIN_STEP_SIZE, MAX_STEP_SIZE)
        finished = torch.where(alarm_steps >= FAR, 0.0, torch.clamp(alarm_steps, max=FALSE_ALARM_STEPS))
        moved = torch.where(warm ^ alarm, (finished - self.alarm_rate) * step_size, 0.0)
        shift = torch.maximum(shift + moved, MIN_THRESHOLD - self.start)
        far = self.above(evidence, threshold + FALSE_ALARM_NATS)
        counted = torch.where(far, torch.clamp(alarm_steps, min=FAR), alarm_steps) + 1.0
        mean, spread = self._moments(statistics, alarm)
        lasting = counted - torch.where(counted >= FAR, FAR, 0.0) >= RESTART_STEPS
        slow = torch.where(alarm & lasting, 0.0, statistics.slow)
        expected = head_outputs["forecast"].select(1, self.next)
        watch = [
            *(expected, statistics.surprise, mean, spread, slow, statistics.run_lengths),
            *(torch.clamp(steps + 1.0, max=self.settled), torch.where(alarm, counted, 0.0), shift),
        ]
        return outputs, (torch.cat(watch, dim=-1),)

    def _moments(self, statistics: AlarmStatistics, alarm: Tensor) -> tuple[Tensor, Tensor]:
        """The next running mean and log variance."""
        steps = statistics.clock[0]
        known = (~statistics.skipped).to(statistics.mean.dtype)
        bounded = torch.clamp(statistics.deviation, -CLIP, CLIP)
        # The levels of a young stream have their plain mean.
        error_rate, level_rate = (
            torch.clamp(1.0 / (steps + prior), min=1.0 / self.times.memory).expand(-1, self.count)
            for prior in (PRIOR_STEPS, 1.0)
        )
        mean_rate = known * torch.cat([error_rate, level_rate], dim=-1)
        mean = statistics.mean + mean_rate * (bounded * torch.exp(statistics.spread * 0.5))
        variance_rate = torch.clamp(1.0 / (steps + PRIOR_STEPS), min=1.0 / (VARIANCE_FACTOR * self.times.memory))
        variance_rate = known * (variance_rate * torch.where(alarm, ALARM_VARIANCE_FACTOR, 1.0))
        spread = statistics.spread + variance_rate * (bounded * bounded - 1.0)
        return mean, torch.clamp(spread, min=MIN_LOG_VARIANCE)

    def raw(self, outputs: Outputs, mean: Tensor, std: Tensor) -> Outputs:  # noqa: ARG002  a score has no unit
        """As they are."""
        return outputs


def _length(vector: Tensor) -> Tensor:
    """(..., n) -> (..., 1): the Euclidean length."""
    return torch.sqrt((vector * vector).sum(dim=-1, keepdim=True))
