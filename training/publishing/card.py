"""The model card: what `card.json` tells people, programs and the report of a version.

`facts` is the part that is short: it also travels in the graph's metadata, under `training`. What depends on the clock or
on the speed of the machine stays out of the graph: the same weights are the same file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import numpy as np
import onnx
import torch

from training.data import datasets
from training.data.series import Series, Spans, rows_of
from training.learning.run import Run
from training.network.network import Network
from training.publishing.parity import Parity

Json = dict[str, Any]

# Why a training ended, in words.
STOPPED = {
    "epochs": "all epochs are done",
    "patience": "the validation score has not improved for a while",
    "minutes": "the time is up",
    "interrupted": "interrupted: the weights so far are kept",
    "diverged": "the loss is no longer a number: the weights before that are kept",
}


def facts(record: Run, network: Network, parity: Parity) -> Json:
    """What was learned from, with which settings, how it ended, and what made the graph."""
    held = record.facts
    data = {"name": held.name, "sha256": held.sha256, "rows": held.rows, "groups": held.groups}
    parts = {"training": held.training, "validation": held.validation, "held_out": held.held_out}
    return {
        "source": record.source.model_dump(),
        "data": data | {name: part.model_dump() for name, part in parts.items()} | _provenance(record),
        "settings": {"network": record.architecture.model_dump(), "fit": record.fit.model_dump()},
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "outcome": record.outcome.model_dump(),
        "parity": asdict(parity),
        "made_with": {
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": metadata.version("onnxruntime"),
        },
    }


def in_metadata(told: Json) -> Json:
    """The facts as the graph carries them: nothing as long as the data, and nothing that a clock has said."""
    parts = {"training", "validation", "held_out"}
    data = {
        key: {inner: told_of for inner, told_of in value.items() if inner not in {"spans", "wholes"}}
        if key in parts
        else value
        for key, value in told["data"].items()
    }
    outcome = {key: value for key, value in told["outcome"].items() if key != "seconds"}
    return told | {"data": data, "outcome": outcome}


def columns(record: Run, network: Network, series: Series) -> list[Json]:
    """Each feature: what the training part looks like, and the share of all rows where it is missing, part by part."""
    held = record.facts
    parts = {"training": held.training, "validation": held.validation, "held_out": held.held_out}
    missing = {name: _missing(series, part.spans) for name, part in parts.items()}
    return [
        {
            "name": name,
            "unit": held.units[index],
            "low": held.low[index],
            "high": held.high[index],
            # The scaler's own, as they stand in the graph.
            "mean": float(str(network.mean[index].numpy())),
            "std": float(str(network.std[index].numpy())),
            "missing": {part: share[index] for part, share in missing.items()},
        }
        for index, name in enumerate(held.features)
    ]


def make(  # noqa: PLR0913  a card is where everything comes together
    *,
    name: str,
    version: int,
    created: str,
    description: Json,
    told: Json,
    features: Sequence[Json],
    scores: Json,
    verdict: str,
    history: Sequence[Json],
    graph: bytes,
) -> Json:
    """The card of a version; `graph` is the file that it describes, `told` its facts, `history` has a row an epoch."""
    # What stands below stands there once.
    bare = {key: value for key, value in description.items() if key != "training"} | {"scores": {}}
    return {
        "name": name,
        "version": version,
        "created": created,
        "fingerprint": hashlib.sha256(graph).hexdigest(),
        "description": bare,
        **told,
        "features": list(features),
        "scores": scores,
        "verdict": verdict,
        "history": list(history),
    }


def _missing(series: Series, spans: Spans) -> list[float]:
    counts = sum(np.isnan(series.values[first:end]).sum(axis=0) for first, end in spans)
    return [round(float(count) / max(rows_of(spans), 1), 6) for count in np.asarray(counts)]


def _provenance(record: Run) -> Json:
    known = datasets.DATASETS.get(record.source.data)
    return {"about": known.about, "source": known.source, "licence": known.licence} if known else {}
