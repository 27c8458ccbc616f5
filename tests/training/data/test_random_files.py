"""Files written in random notations: each is read as it was written, or refused because it can be read in two ways."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import numpy as np

from tidegate.training.data.load import read
from tidegate.training.errors import TrainingError

FILES = 80
EXCEL_START, UNIX_START = datetime(1899, 12, 30), datetime(1970, 1, 1)  # noqa: DTZ001  clocks without a zone
NOTATIONS = (
    *("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%d.%m.%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %I:%M:%S %p"),
    *("%d-%b-%Y %H:%M:%S", "%Y/%m/%d %H:%M:%S", "%Y%m%d%H%M%S", "%d.%m.%y %H:%M:%S", "%-d.%-m.%Y %-H:%M:%S"),
    *("%Y-%m-%d{}%H:%M:%S", "unix", "unix ms", "excel"),
)


@dataclass(frozen=True)
class Notation:
    """How a file is written."""

    between: str
    decimal: str
    thousands: str
    digits: int
    times: str
    encoding: str
    above: str
    units: bool
    end: str

    @classmethod
    def draw(cls, random: Random) -> "Notation":
        """A random one. Between commas, 1.234 is a decimal point without a doubt: nobody groups thousands so there."""
        between, decimal = random.choice(",;\t|"), random.choice(".,")
        thousands = random.choice(["", "", " ", "'", "." if decimal == "," else ","])
        return cls(
            between=between,
            decimal=decimal,
            thousands="" if between in ",|" and thousands == "." else thousands,
            digits=random.choice([1, 2, 3]) if thousands == "." else random.choice([0, 1, 2, 3]),
            times=random.choice(NOTATIONS),
            encoding=random.choice(["utf-8", "utf-8-sig", "latin-1", "utf-16"]),
            above=random.choice(["", "", "# logger 7\n# a, b; c\n", "Station Alpha\nSerial: 12\n\n"]),
            units=random.random() < 0.3,
            end=random.choice(["\n", "\r\n"]),
        )

    def text(self, times: list[datetime], values: np.ndarray) -> str:
        """The file of these times and values; NaN is an empty cell."""
        own = self.between in self.times.format(self.between) and "{}" in self.times
        lines = [self.above + self.between.join(["Zeit", *(["Uhr"] if own else []), "Temp", "Größe"])]
        if self.units:
            lines.append(self.between.join([*([""] * (2 if own else 1)), "°C", "m/s"]))
        for time, row in zip(times, values.tolist(), strict=True):
            lines.append(self.between.join([self._time(time), *map(self._number, row)]))
        return "\n".join(lines).replace("\n", self.end)

    def _time(self, time: datetime) -> str:
        if self.times.startswith("unix"):
            return str((time - UNIX_START) // timedelta(milliseconds=1 if "ms" in self.times else 1000))
        if self.times == "excel":
            return self._quoted(f"{(time - EXCEL_START) / timedelta(days=1):.8f}".replace(".", self.decimal))
        return time.strftime(self.times.format(self.between))

    def _number(self, value: float) -> str:
        if np.isnan(value):
            return ""
        signs = {",": self.thousands, ".": self.decimal}
        return self._quoted("".join(signs.get(sign, sign) for sign in f"{value:,.{self.digits}f}"))

    def _quoted(self, cell: str) -> str:
        return f'"{cell}"' if self.between in cell else cell


def test_a_file_is_read_as_it_was_written_or_refused_for_two_readings(tmp_path: Path) -> None:
    """Never a silent wrong value: values and times are compared with what was written, cell by cell."""
    random, refusals = Random(0), list[str]()
    for number in range(FILES):
        notation = Notation.draw(random)
        rows, step_s = random.choice([5, 60, 300]), random.choice([10, 60, 600, 3600, 86400])
        start = datetime(random.choice([2001, 2019, 2024]), random.randint(1, 12), random.randint(1, 28))  # noqa: DTZ001
        times = [start + timedelta(seconds=step_s * row) for row in range(rows)]
        scale = random.choice([1, 30, 5000, 2e6])
        changes = np.random.default_rng(number).normal(scale=scale / 10, size=(rows, 2))
        values = np.round(np.cumsum(changes, axis=0) + scale, notation.digits)
        values[random.randrange(rows), 0] = np.nan
        path = tmp_path / f"{number}.csv"
        path.write_bytes(notation.text(times, values).encode(notation.encoding))
        try:
            series = read(path, columns=("Temp", "Größe"))
        except TrainingError as error:
            refusals.append(str(error))
            continue
        np.testing.assert_array_equal(series.values, values.astype(np.float32), err_msg=str(notation))
        np.testing.assert_array_equal(series.times, np.array(times, "datetime64[ns]"), err_msg=str(notation))
    assert all("two ways" in refusal or "may be" in refusal for refusal in refusals), refusals
    # Most notations leave no doubt.
    assert len(refusals) < FILES // 3
