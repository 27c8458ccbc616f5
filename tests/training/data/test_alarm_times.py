"""The times of an alarm: from the data, or as typed."""

import pytest

from tidegate.training.data.alarm_times import alarm_times
from tidegate.training.errors import SettingsError
from tidegate.training.settings import AlarmTimes


@pytest.mark.parametrize(
    ("rows", "period_s", "wanted"),
    [
        (400, 1.0, AlarmTimes(memory=24, slow=4, warm_up=24)),
        (16_000, 600.0, AlarmTimes(memory=320, slow=20, warm_up=96)),
        (100_000, 1.0, AlarmTimes(memory=2000, slow=64, warm_up=96)),
        (100_000, 3600.0, AlarmTimes(memory=168, slow=10.5, warm_up=96)),  # a week
        (100_000, 86_400.0, AlarmTimes(memory=24, slow=4, warm_up=24)),
        (100_000, None, AlarmTimes(memory=2000, slow=64, warm_up=96)),
    ],
)
def test_times_come_from_rows_and_period(rows: int, period_s: float | None, wanted: AlarmTimes) -> None:
    """A fiftieth of the rows, at most a week, at least two dozen timesteps; the others follow."""
    assert alarm_times(rows, period_s) == wanted


def test_times_are_typed_in_timesteps_or_in_time() -> None:
    """A number counts timesteps, a number with a unit is divided by the period."""
    assert alarm_times(400, 60.0, memory="500", slow="5min", warm_up="1.5h") == AlarmTimes(
        memory=500, slow=5, warm_up=90
    )
    assert alarm_times(400, 30.0, memory="1d", slow="90s") == AlarmTimes(memory=2880, slow=3, warm_up=96)


@pytest.mark.parametrize(
    ("asked", "period_s", "message"),
    [
        (
            {"memory": "soon"},
            60.0,
            r"alarm-memory: got 'soon', expected timesteps \(500\) or a time \(30s, 5min, 12h, 7d\)",
        ),
        ({"slow": "12h"}, None, r"alarm-slow: got '12h', but the period of the data is not known; .* --period"),
        ({"warm_up": "10s"}, 60.0, r"alarm-warm-up: got '10s', which is 0.17 timesteps; expected at least 1"),
        ({"memory": "1"}, 60.0, r"alarm-memory: got '1', which is 1 timesteps; expected at least 2"),
    ],
)
def test_a_time_that_cannot_be_is_refused(asked: dict[str, str], period_s: float | None, message: str) -> None:
    """With the option, what was typed and what is expected."""
    with pytest.raises(SettingsError, match=message):
        alarm_times(400, period_s, **asked)
