"""The metrics of several workers in one exposition."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.servers import Scrape
from tests.timeouts import TIMEOUT_S
from tidegate.runtime.exposition import Exposition, WorkerMetrics
from tidegate.runtime.metrics import Metrics, ModelMetrics
from tidegate.runtime.shared_counters import MetricFamily, SharedCounters, make_shared_file

FAMILIES = [
    MetricFamily("toys", "Toys.", "counter", ("kind",), [("red",), ("blue",)]),
    MetricFamily("toy_seconds", "Playing.", "histogram", (), [()], (1.0, 2.0)),
    MetricFamily("toy_depth", "Waiting.", "gauge", (), [()]),
]


def metrics_of(*models: str, last: Sequence[SharedCounters] = ()) -> Metrics:
    """The metrics of a worker that serves these models."""
    metrics = Metrics({"tidegate": "1"})
    metrics.create_counters(None, last)
    for name in models:
        metrics.add_model(ModelMetrics(name, "1", "f" * 64))
    return metrics


def source(worker: int, counters: Sequence[SharedCounters], *, up: bool = True) -> WorkerMetrics:
    """A worker that is up, in this process."""
    made = WorkerMetrics(str(worker))
    made.counters, made.up, made.pid = counters, up, os.getpid()
    return made


def collect(sources: Sequence[WorkerMetrics]) -> Scrape:
    """The text of /metrics."""
    registry = CollectorRegistry()
    registry.register(Exposition(sources, lambda: None, supervised=True))
    return Scrape(generate_latest(registry).decode())


# --- all_counters


def test_what_one_process_counts_another_reads() -> None:
    """Another process reads the numbers and their description, at once and after the writer was killed."""
    file = make_shared_file()
    os.set_inheritable(file, True)
    code = (
        "import os, sys; from tidegate.runtime.shared_counters import SharedCounters, MetricFamily\n"
        "counters = SharedCounters.create([MetricFamily('toys', 'Toys.', 'counter', ('kind',), [('red',), ('blue',)])], int(sys.argv[1]))\n"
        "counters.numbers('toys', ('blue',))[0] = 3.0; os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], close_fds=False, timeout=TIMEOUT_S, check=False)
    counters = SharedCounters.read(file)
    assert [(family.name, family.help, family.kind) for family in counters.families] == [("toys", "Toys.", "counter")]
    assert counters.numbers("toys", ("red",)).tolist() == [0.0]
    assert counters.numbers("toys", ("blue",)).tolist() == [3.0]
    with pytest.raises(TypeError):
        counters.numbers("toys", ("red",))[0] = 1.0  # a reader cannot write
    os.close(file)


def test_a_file_without_a_block_is_refused() -> None:
    """The file of another program is refused."""
    file = make_shared_file()
    os.write(file, b"x" * 100)
    with pytest.raises(ValueError, match="expected b'tdgblk"):
        SharedCounters.read(file)
    os.close(file)


def test_counts_continue_by_name_and_labels() -> None:
    """Counts continue, whatever models were added or removed. Gauges start again."""
    last = SharedCounters.create(FAMILIES)
    last.numbers("toys", ("blue",))[0] = 7.0
    last.numbers("toy_seconds", ())[:] = memoryview(bytearray(32)).cast("d")
    last.numbers("toy_seconds", ())[1] = 5.0
    last.numbers("toy_depth", ())[0] = 9.0
    counters = SharedCounters.create(
        [FAMILIES[2], FAMILIES[1], MetricFamily("toys", "Toys.", "counter", ("kind",), [("blue",), ("green",)])]
    )
    counters.continue_from(last)
    assert counters.numbers("toys", ("blue",)).tolist() == [7.0]
    assert counters.numbers("toys", ("green",)).tolist() == [0.0]
    assert counters.numbers("toy_seconds", ()).tolist() == [0.0, 5.0, 0.0, 0.0]
    assert counters.numbers("toy_depth", ()).tolist() == [0.0]


def test_buckets_with_other_bounds_begin_anew() -> None:
    """Counts below other bounds are not comparable."""
    last = SharedCounters.create(FAMILIES)
    last.numbers("toy_seconds", ())[1] = 5.0
    counters = SharedCounters.create([MetricFamily("toy_seconds", "Playing.", "histogram", (), [()], (1.0, 3.0))])
    counters.continue_from(last)
    assert counters.numbers("toy_seconds", ()).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_new_process_continues_the_counts_of_the_last() -> None:
    """Every count and every histogram of every model that is still served."""
    before = metrics_of("lake", "pond")
    for model in before._models:
        model.steps["ok"] += 3
        model.missing_values += 2
        model.step_seconds.observe(0.0004)
    before.opened["new"] += 1
    before.state_lost += 1
    before.checkpoint_seconds.observe(0.01)
    after = metrics_of("pond", "sea", last=before.counters)
    pond, _ = after._models
    pond.steps["ok"] += 4
    pond.step_seconds.observe(0.0004)
    after.opened["new"] += 1
    assert pond.steps["ok"] == 7
    assert pond.missing_values == 2
    scrape = collect([source(0, after.counters)])
    assert scrape("tidegate_steps_total", model="pond", outcome="ok") == 7
    assert scrape("tidegate_steps_total", model="sea", outcome="ok") == 0
    assert scrape("tidegate_step_seconds_count", model="pond") == 2
    assert scrape("tidegate_step_seconds_sum", model="pond") == pytest.approx(0.0008)
    assert scrape("tidegate_streams_opened_total", kind="new") == 2
    assert scrape("tidegate_state_lost_total") == 1
    assert scrape("tidegate_checkpoint_seconds_count") == 1


# --- workers


def test_every_series_has_its_name() -> None:
    """For a while, workers may serve different models. Both are reported."""
    one, two = metrics_of("lake"), metrics_of("lake", "pond")
    scrape = collect([source(0, one.counters), source(1, two.counters)])
    for name, labels in {key: key[1] for key in scrape._samples}:
        assert "worker" in dict(labels) or name == "python_info"
    assert scrape("tidegate_worker_up", worker="0") == scrape("tidegate_worker_up", worker="1") == 1
    assert scrape("tidegate_steps_total", model="pond", outcome="ok") == 0


def test_gauges_of_a_worker_that_is_not_up_are_left_out() -> None:
    """They are out of date. Its counts are still reported."""
    all_counters = [metrics_of("lake").counters for _ in range(2)]
    scrape = collect([source(0, all_counters[0], up=False), source(1, all_counters[1])])
    assert scrape("tidegate_worker_up", worker="0") == 0
    assert scrape("tidegate_steps_total", worker="0", outcome="ok") == 0
    for name in ("tidegate_queue_depth", "tidegate_unsaved_seconds", "tidegate_build_info", "tidegate_model_info"):
        assert {dict(labels)["worker"] for sample, labels in scrape._samples if sample == name} == {"1"}


@pytest.mark.parametrize(("up", "reporter", "parked"), [((True, True), "0", 70), ((False, True), "1", 80)])
def test_parked_streams_are_logged_once_for_all(up: tuple[bool, bool], reporter: str, parked: int) -> None:
    """The lowest worker that is up reports them: all known streams, less the live ones of all workers that are up."""
    sources = []
    for worker, live in enumerate((10, 20)):
        metrics = metrics_of("lake")
        metrics.live_streams, metrics.known_streams = (lambda live=live: live), lambda: 100
        metrics.refresh()
        sources.append(source(worker, metrics.counters, up=up[worker]))
    scrape = collect(sources)
    assert scrape("tidegate_streams", state="parked") == parked
    assert scrape("tidegate_streams", state="parked", worker=reporter) == parked


def test_a_worker_that_has_never_served_is_not_up() -> None:
    """It is up or not; nothing else is known."""
    scrape = collect([source(0, [], up=False), source(1, metrics_of("lake").counters)])
    assert scrape("tidegate_worker_up", worker="0") == 0
    assert scrape("tidegate_steps_total", outcome="ok") == 0


def test_processes_are_reported_one_by_one() -> None:
    """Of each worker and the supervisor, under the names of Prometheus client libraries."""
    scrape = collect([source(0, []), source(1, [])])
    for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "max_fds", "start_time_seconds"):
        for worker in ("0", "1", "supervisor"):
            assert scrape(f"process_{name}", worker=worker) > 0


def test_the_time_that_a_worker_has_used_does_not_fall() -> None:
    """Not even between the end of a process and `reaped`."""
    one = source(0, [])
    before = one.process()["process_cpu_seconds"]
    one.pid = 2**22 + 1  # no process can have it
    assert one.process() == {"process_cpu_seconds": before}
    one.pid, one.cpu_seconds = 0, before + 0.004
    assert one.process() == {"process_cpu_seconds": before + 0.004}


async def test_promtool_accepts_several_workers() -> None:
    """Names, units, types and help follow Prometheus' rules. One of the workers is down."""
    promtool = shutil.which("promtool")
    if promtool is None:
        message = "promtool is not installed; it is in the Debian package prometheus"
        if os.environ.get("TIDEGATE_REQUIRE_ALL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    text = collect([source(worker, metrics_of("lake").counters, up=worker != 1) for worker in range(3)]).text
    checked = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_model_that_is_unloaded_is_reported_no_more() -> None:
    """Nor are its gauges looked up."""
    metrics = metrics_of("lake", "pond")
    lake, pond = metrics._models
    looked = []
    lake.queue_depth = lambda: looked.append(1) or 0
    metrics.remove_model(lake)
    pond.steps["ok"] += 1
    metrics.refresh()
    scrape = collect([source(0, metrics.counters)])
    assert scrape("tidegate_steps_total", outcome="ok") == 1
    assert scrape("tidegate_model_info", model="pond") == 1
    assert not looked


def test_a_file_holds_the_counters_of_models_that_were_loaded_later() -> None:
    """Each where the writer says."""
    file = make_shared_file()
    metrics = Metrics({})
    metrics.create_counters(file)
    for name in ("lake", "pond"):
        model = ModelMetrics(name, "1", "f" * 64)
        metrics.add_model(model)
        model.steps["ok"] += len(metrics.counters)
    read = [SharedCounters.read(file, counters.offset) for counters in metrics.counters]
    scrape = collect([source(0, read)])
    assert scrape("tidegate_steps_total", model="lake", outcome="ok") == 2
    assert scrape("tidegate_steps_total", model="pond", outcome="ok") == 3
    os.close(file)
