"""Files of sensor rows."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from tests.graphs import LSTM_FEATURES


def write_csv(path: Path, rows: Any, columns: tuple[str, ...] = LSTM_FEATURES, label: bool = True) -> Path:
    """A CSV file; NaN is an empty cell."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(["when"] if label else []), *columns])
        for number, row in enumerate(rows):
            cells = ["" if np.isnan(value) else repr(float(value)) for value in row]
            writer.writerow([*([f"t{number}"] if label else []), *cells])
    return path
