"""A run from before the times of an alarm were settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tidegate.training.data.alarm_times import alarm_times
from tidegate.training.judging.graph import Graph
from tidegate.training.learning import checkpoint
from tidegate.training.pipeline import export_run, train
from tidegate.training.settings import Fit, Request, Shape, Source


@pytest.mark.slow
def test_an_old_run_is_exported_with_a_new_alarm(tmp_path: Path) -> None:
    """Its weights are kept, its monitors are fitted to the same data: the graph is that of a run of today."""
    rng = np.random.default_rng(0)
    table = tmp_path / "rooms.csv"
    values = 20 + np.cumsum(rng.normal(0, 0.1, (500, 2)), axis=0)
    stamps = np.datetime64("2024-01-01T00:00:00") + np.arange(500) * np.timedelta64(600, "s")
    lines = ["time,a,b", *(f"{stamp},{a:.2f},{b:.2f}" for stamp, (a, b) in zip(stamps, values, strict=True))]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    request = Request(
        source=Source(data=str(table)),
        links=("last",),
        follow=False,
        shape=Shape(hidden=4, level="off"),
        fit=Fit(epochs=1, device="cpu"),
        target=("a",),
        horizons=(1,),
        alarm_rate=0.02,
        name="rooms",
        models=tmp_path / "models",
        out=tmp_path / "run",
    )
    wanted = train(request, lambda _epoch, _best: None, lambda _note: None)
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert record["architecture"]["task"].pop("alarm_times") == alarm_times(425, 600.0).model_dump()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    weights = checkpoint.load(tmp_path / "run" / checkpoint.BEST)
    old = {name: part for name, part in weights.items() if not name.startswith("monitors.")}
    checkpoint.save(tmp_path / "run" / checkpoint.BEST, old | {"monitors.0.tail": torch.zeros(3, 5)})
    got = export_run(tmp_path / "run", tmp_path / "models", data=None, name="rooms", version=2, season=None)
    assert got.run.architecture == wanted.run.architecture
    x = np.asarray(values[:150, None], np.float32)
    outputs, again = (Graph.load(each.folder).replay(x)[0] for each in (wanted, got))
    assert all(np.array_equal(outputs[name], again[name]) for name in outputs)
    assert outputs["score"].max() > 0
