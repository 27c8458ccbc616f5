"""The times of an alarm in timesteps: as asked for, or from the number of rows and the period of the data."""

import re

from tidegate.training.errors import SettingsError
from tidegate.training.settings import AlarmTimes

# The memory of an alarm, as a share of the data. Data that holds many such stretches shows what is usual: with 50 of them
# false alarms keep their rate even where levels wander; with 10 or 20 one slow wave of the data decides.
MEMORY_SHARE = 1 / 50
MIN_MEMORY = 24.0
# Longer than faults that somebody should look after, shorter than the seasons.
MAX_MEMORY_S = 7 * 86_400.0
# A slow fault has to be found before it has become usual. Averages over few timesteps only repeat the single ones.
SLOW_SHARE = 1 / 16
MIN_SLOW, MAX_SLOW = 4.0, 64.0
# The errors of a network settle within 24 timesteps, and a mean over 24 is known well enough; 96 are enough for both.
MIN_WARM_UP, MAX_WARM_UP = 24, 96

_UNITS_S = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|min|h|d)?")


def alarm_times(
    rows: int,
    period_s: float | None,
    *,
    memory: str | None = None,
    slow: str | None = None,
    warm_up: str | None = None,
) -> AlarmTimes:
    """The times of an alarm that is fitted on a number of rows.

    Args:
        rows: of the training and the validation part.
        period_s: seconds from row to row, if known.
        memory: as typed, a number of timesteps (`500`) or a time (`12h`); None: from the data.
        slow: as typed; None: from the memory.
        warm_up: as typed; None: from the memory.

    Raises:
        SettingsError: a time without a period, or one that is too short.
    """
    usual = max(rows * MEMORY_SHARE, MIN_MEMORY)
    if period_s:
        usual = min(usual, max(MAX_MEMORY_S / period_s, MIN_MEMORY))
    memory_steps = usual if memory is None else _steps("alarm-memory", memory, period_s, least=2)
    slow_steps = min(max(memory_steps * SLOW_SHARE, MIN_SLOW), MAX_SLOW)
    warm_up_steps = min(max(memory_steps, MIN_WARM_UP), MAX_WARM_UP)
    return AlarmTimes(
        memory=round(memory_steps, 1),
        slow=round(slow_steps if slow is None else _steps("alarm-slow", slow, period_s, least=1), 1),
        warm_up=round(warm_up_steps if warm_up is None else _steps("alarm-warm-up", warm_up, period_s, least=1)),
    )


def _steps(option: str, typed: str, period_s: float | None, *, least: int) -> float:
    """The typed number of timesteps, or the timesteps of the typed time."""
    match = _DURATION.fullmatch(typed.strip())
    if match is None:
        raise SettingsError(f"{option}: got {typed!r}, expected timesteps (500) or a time (30s, 5min, 12h, 7d)")
    number, unit = float(match[1]), match[2]
    if unit and not period_s:
        raise SettingsError(
            f"{option}: got {typed!r}, but the period of the data is not known; give timesteps, or the period with --period"
        )
    steps = number * _UNITS_S[unit] / period_s if unit and period_s else number
    if steps < least:
        raise SettingsError(f"{option}: got {typed!r}, which is {steps:.2g} timesteps; expected at least {least}")
    return steps
