"""The model card `card.json`, which people, programs and the report of a version read.

`training_facts` is its short part, which is also in the metadata of the graph, under `training`. What depends on the clock
or on the speed of the machine stays out of the graph, so that the same weights give the same file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import numpy as np
import onnx
import torch

from tidegate.training.data import datasets
from tidegate.training.data.series import Series, Spans, count_rows
from tidegate.training.learning.run import Run
from tidegate.training.network.network import Network
from tidegate.training.publishing.parity import Parity

Json = dict[str, Any]

# Why a training stopped, in words.
STOP_REASONS = {
    "epochs": "all epochs are done",
    "patience": "the validation score has not improved for a while",
    "minutes": "the time is up",
    "interrupted": "interrupted: the weights so far are kept",
    "diverged": "the loss is no longer a number: the weights before that are kept",
}


def training_facts(run: Run, network: Network, parity: Parity) -> Json:
    """The data, the settings, the outcome, and the versions of the libraries."""
    data_facts = run.facts
    data = {"name": data_facts.name, "sha256": data_facts.sha256, "rows": data_facts.rows, "groups": data_facts.groups}
    data |= {
        "absent": asdict(data_facts.absent) if data_facts.absent else None,
        "group_column": data_facts.group_column,
    }
    return {
        "source": run.source.model_dump(),
        "data": data | {name: part.model_dump() for name, part in data_facts.parts.items()} | _provenance(run),
        "settings": {"network": run.architecture.model_dump(), "fit": run.fit.model_dump()},
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "outcome": run.outcome.model_dump(),
        "parity": asdict(parity),
        "made_with": made_with(),
    }


def metadata_facts(facts: Json) -> Json:
    """The facts for the metadata of the graph: without long lists, and without times of the clock."""
    parts, lists = {"training", "validation", "held_out"}, {"spans", "wholes", "groups", "starts", "ends"}
    data = {
        key: {inner: content for inner, content in value.items() if inner not in lists} if key in parts else value
        for key, value in facts["data"].items()
    }
    outcome = {key: value for key, value in facts["outcome"].items() if key != "seconds"}
    return facts | {"data": data, "outcome": outcome}


def made_with() -> dict[str, str]:
    """The versions of the libraries that made a graph."""
    return {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": metadata.version("onnxruntime"),
    }


def feature_statistics(run: Run, network: Network, series: Series) -> list[Json]:
    """Each feature: its statistics in the training part, and its share of missing values in each part."""
    data_facts = run.facts
    missing = {name: _missing(series, part.spans) for name, part in data_facts.parts.items()}
    return [
        {
            "name": name,
            "unit": data_facts.units[index],
            "low": data_facts.low[index],
            "high": data_facts.high[index],
            # Those of the scaler, as in the graph.
            "mean": float(str(network.mean[index].numpy())),
            "std": float(str(network.std[index].numpy())),
            "missing": {part: share[index] for part, share in missing.items()},
        }
        | ({"categories": list(data_facts.categories[name])} if name in data_facts.categories else {})
        for index, name in enumerate(data_facts.features)
    ]


def make_card(  # noqa: PLR0913  a card brings everything together
    *,
    name: str,
    version: int,
    created: str,
    description: Json,
    facts: Json,
    features: Sequence[Json],
    scores: Json,
    verdict: str,
    history: Sequence[Json],
    graph: bytes,
    run: str,
) -> Json:
    """The card of a version.

    `graph` is the content of its file, `facts` its facts, `history` has a row for each epoch, and `run` is the folder that a
    warm start finds the weights in.
    """
    # Facts and scores have their own place in the card.
    description_part = {key: value for key, value in description.items() if key != "training"} | {"scores": {}}
    return {
        "name": name,
        "version": version,
        "created": created,
        "run": run,
        "fingerprint": hashlib.sha256(graph).hexdigest(),
        "description": description_part,
        **facts,
        "features": list(features),
        "scores": scores,
        "verdict": verdict,
        "history": list(history),
    }


def _missing(series: Series, spans: Spans) -> list[float]:
    counts = sum(np.isnan(series.values[first:end]).sum(axis=0) for first, end in spans)
    return [round(float(count) / max(count_rows(spans), 1), 6) for count in np.asarray(counts)]


def _provenance(run: Run) -> Json:
    known = datasets.DATASETS.get(run.source.data)
    return {"about": known.about, "source": known.source, "licence": known.licence} if known else {}
