"""A warm start: a training that begins with the weights of an earlier one, on data that has grown since.

The schedule is the usual one. On `appliances`, begun from a model of its first four fifths, 10 epochs at the usual rate reach
a validation score of 0.477, as 60 epochs from random weights do; at half the rate it is 0.483, at a quarter 0.485.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from torch import Tensor

from tidegate.training.data import features
from tidegate.training.data.learned import learned_rows
from tidegate.training.data.prepare import Prepared
from tidegate.training.data.series import check_period
from tidegate.training.errors import RunError, SettingsError
from tidegate.training.learning import checkpoint, run
from tidegate.training.settings import Request


@dataclass(frozen=True)
class WarmStart:
    """The run to begin with: its record, and its best weights by name."""

    record: run.Run
    weights: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a run folder, or the one that a version was exported from.

        Raises:
            RunError: there is no finished run.
        """
        folder = _run_of(path)
        record, _ = run.load(folder)
        if record.request is None:
            raise RunError(f"warm-start: {folder} is a part of a backtest, expected a run of `tidegate train`")
        return cls(record, checkpoint.load(folder / checkpoint.BEST))

    def request(self, typed: Request) -> Request:
        """The request of a training that begins here: the run's own, with the typed settings that may differ.

        Raises:
            RunError: a setting of the network was typed, which is fixed.
        """
        kept = self.record.request
        assert kept is not None  # see `load`
        request = run.warm_started(kept, typed)
        # Columns that were left out then may move now, and the other way round.
        own = tuple(name for name in self.record.facts.features if not features.is_derived(name))
        source = request.source.model_copy(update={"columns": own})
        return request.model_copy(update={"source": source})

    def apply(self, prepared: Prepared) -> Prepared:
        """The input of the fit with the scaler and the architecture of the run, which its weights belong to.

        Raises:
            SettingsError: the data has other features, or the held-out part has rows that the run has learned from.
            PeriodMismatch: its rows are not as far apart.
        """
        facts, series, weights = self.record.facts, prepared.series, self.weights
        if series.names != facts.features:
            raise SettingsError(
                f"warm-start: {series.name} has the features {', '.join(series.names)}, expected those of the model: "
                f"{', '.join(facts.features)}"
            )
        check_period(series, facts.period_s)
        parts = {name: part.model_dump() for name, part in facts.parts.items()}
        unlearned = np.zeros(len(series), np.bool_)
        for first, end in learned_rows(series, parts).split.test:
            unlearned[first:end] = True
        known = sum(int((~unlearned[first:end]).sum()) for first, end in prepared.split.test)
        if known:
            raise SettingsError(
                f"warm-start: the model has learned from {known} rows of the held-out part, whose scores would say nothing; "
                f"append more rows, or make the held-out part shorter with --train-share and --validation-share"
            )
        mean, std, pace = (weights[name].numpy() for name in ("mean", "std", "pace"))
        scaler = replace(prepared.scaler, mean=mean, std=std, step=pace * std)
        return replace(prepared, scaler=scaler, architecture=self.record.architecture)


def _run_of(path: Path) -> Path:
    """The run folder of a path: itself, or that in the card of a version."""
    card = (path if path.is_dir() else path.parent) / "card.json"
    if not card.is_file():
        return path
    try:
        folder = json.loads(card.read_text(encoding="utf-8")).get("run")
    except ValueError as error:
        raise RunError(f"warm-start: {card} is not JSON: {error}") from error
    if not folder or not (Path(folder) / run.RUN).is_file():
        raise RunError(
            f"warm-start: {path} was exported from {folder or 'a run that it does not name'}, which is not there; name the "
            f"folder of its run"
        )
    return Path(folder)
