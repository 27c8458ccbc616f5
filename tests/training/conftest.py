"""Small series, networks and graphs for the tests of the training package."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.once import make_once
from tidegate.training.data import datasets
from tidegate.training.data.load import read
from tidegate.training.data.scaler import Scaler, fit_scaler
from tidegate.training.data.series import Series
from tidegate.training.data.split import split_by_time
from tidegate.training.errors import DatasetUnavailable
from tidegate.training.judging.graph import Graph
from tidegate.training.learning.run import DataFacts
from tidegate.training.network.network import Network, build_network
from tidegate.training.publishing.export import build_graph, describe
from tidegate.training.settings import Architecture, Classify, Forecast

HORIZONS = (1, 3)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors run faster on one thread, and equal bits need an equal number of threads; so in processes of a test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def one_registry() -> Iterator[None]:
    """In each export torch makes the table of its operators anew: half a second, always with the same result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def make_series() -> Callable[..., Series]:
    """Builds a series of two waves and noise, an hour apart, from 2024 on."""

    def make(
        rows: int = 400, *, features: int = 3, seed: int = 0, missing: float = 0.0, gap_at: int | None = None
    ) -> Series:
        rng = np.random.default_rng(seed)
        phase = np.arange(rows)[:, None] * 2 * np.pi / np.array([24.0, 7.0, 50.0])[:features]
        values = 20 + 5 * np.sin(phase) + rng.normal(0, 0.5, (rows, features))
        values[rng.random(values.shape) < missing] = np.nan
        hours = np.arange(rows)
        if gap_at is not None:
            hours[gap_at:] += 100
        times = np.datetime64("2024-01-01T00:00:00", "ns") + hours * np.timedelta64(3_600_000_000_000, "ns")
        names = tuple(f"s{index}" for index in range(features))
        return Series("toy", "0" * 64, names, ("°C",) * features, values.astype(np.float32), times, 3600.0)

    return make


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Network]:
    """Builds a small network with random weights, whose head and share are not at their starting values either."""

    def make(
        *,
        features: int = 3,
        hidden: int = 8,
        layers: int = 1,
        targets: tuple[int, ...] = (0,),
        quantiles: tuple[float, ...] = (0.1, 0.5, 0.9),
        seed: int = 1,
    ) -> Network:
        rng = np.random.default_rng(seed)
        mean = rng.normal(20, 5, features).astype(np.float32)
        std = rng.uniform(0.5, 3, features).astype(np.float32)
        scaler = Scaler(mean, std, mean - std, mean + std, std / 4, ())
        task = Forecast(targets=targets, horizons=HORIZONS, quantiles=quantiles)
        architecture = Architecture(features=features, task=task, hidden=hidden, layers=layers)
        network = build_network(architecture, scaler, seed)
        with torch.no_grad():
            network.head.share["last"].copy_(torch.from_numpy(rng.uniform(-0.8, -0.1, network.head.shape)))
        return network.eval()

    return make


@pytest.fixture(scope="session")
def make_facts(make_series: Callable[..., Series]) -> Callable[[int], DataFacts]:
    """Builds the facts of a toy series with so many features."""

    def make(features: int) -> DataFacts:
        series = make_series(features=features)
        split = split_by_time(series, train=0.7, validation=0.15, horizon=max(HORIZONS))
        return DataFacts.of(series, split, fit_scaler(series, split.train))

    return make


@pytest.fixture(scope="session")
def exported(
    make_network: Callable[..., Network],
    make_facts: Callable[[int], DataFacts],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Network, onnx.ModelProto]:
    """A network of two layers and its graph. An export takes seconds, so there is one for all tests; leave it as it is."""
    network = make_network(layers=2, targets=(0, 2))
    network.prepare_export()
    content = make_once(
        tmp_path_factory,
        "exported",
        lambda: build_graph(network, describe(network, make_facts(3), scores={})).SerializeToString(),
    )
    return network, onnx.load_from_string(content)


@pytest.fixture(scope="session")
def classifier(make_facts: Callable[[int], DataFacts], tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A small graph with random weights that tells three classes apart; leave it as it is."""
    mean, std = np.full(3, 20, np.float32), np.full(3, 4, np.float32)
    architecture = Architecture(features=3, hidden=8, task=Classify(classes=("idle", "run", "walk")))
    network = build_network(architecture, Scaler(mean, std, mean - std, mean + std, std / 4, ()), seed=2).eval()
    content = make_once(
        tmp_path_factory,
        "classifier",
        lambda: build_graph(network, describe(network, make_facts(3), scores={})).SerializeToString(),
    )
    return Graph(content, "classifier")


@pytest.fixture
def graph(exported: tuple[Network, onnx.ModelProto]) -> Graph:
    """The exported graph, ready to step."""
    return Graph(exported[1].SerializeToString(), "test")


@pytest.fixture
def sensor_rows() -> Callable[..., Any]:
    """Builds (time, batch, features) raw values around 20, a tenth of them missing, the whole first timestep too."""

    def make(steps: int, batch: int, features: int = 3, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        values = rng.normal(20, 5, (steps, batch, features)).astype(np.float32)
        values[rng.random(values.shape) < 0.1] = np.nan
        values[0] = np.nan
        return values

    return make


@pytest.fixture(scope="session")
def appliances_csv() -> Path:
    """The file of the named data set, from the cache or fetched once."""
    try:
        return datasets.fetch("appliances")
    except DatasetUnavailable as error:
        if os.environ.get("TIDEGATE_REQUIRE_ALL") == "1":
            raise
        pytest.skip(f"needs the data set appliances, which cannot be fetched here: {error}")


@pytest.fixture(scope="session")
def appliances(appliances_csv: Path) -> Series:
    """The whole series of the named data set, noise columns and all."""
    return read(appliances_csv, name="appliances", time="date")
