"""The whole line in about two minutes: learn from real sensor data, export, serve, stream, look at the figures.

    python examples/demo.py [--minutes M] [--folder demo]

Every step is a command that you could type yourself, and is printed before it runs. Exit code 1 says that the model did
not beat persistence on data that it had not seen.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

SECONDS_TO_START = 30
SECONDS_TO_STOP = 30
STAGES = {
    "step_seconds": "timestep read to answer sent",
    "queue_seconds": "of which waiting for a batch",
    "run_seconds": "of which computing the batch",
}

console = Console(highlight=False)


def main() -> None:
    """Runs the demo."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=1.0, help="how long to train (default: 1)")
    options.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes (default: demo)")
    given = options.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    models, held_out = folder / "models", folder / "held_out.csv"
    plot, scores = folder / "forecast.png", folder / "scores.json"

    title("1. Learn from 19,735 rows of a house's sensors and export one timestep as ONNX")
    version = next_version(models / "appliances")
    run(
        "train", "--data", "appliances", "--target", "Appliances", "--minutes", str(given.minutes), "--models", models,
        "--name", "appliances", "--version", version, "--out", folder / f"run-{version}", "--held-out", held_out,
    )  # fmt: skip

    title("2. Serve it, and stream the rows it has not seen, one timestep at a time")
    with serving(models, folder / "data") as (address, metrics_url):
        run("stream", held_out, "--address", address, "--model", "appliances", "--plot", plot, "--scores", scores)
        title("3. What the server measured of itself")
        print_latency(metrics_url, str(version))
    console.print("The server has stopped cleanly.")
    judge(json.loads(scores.read_text("utf-8"))["scores"], plot)


def title(text: str) -> None:
    """Prints a heading."""
    console.print(f"\n[bold]{text}[/]")


def tidegate(*words: object) -> list[str]:
    """A command line of `tidegate`, which is printed."""
    console.print(f"[dim]$ tidegate {shlex.join(str(word) for word in words)}[/]", soft_wrap=True)
    return [sys.executable, "-m", "serving", *(str(word) for word in words)]


def run(*words: object) -> None:
    """Runs a command; ends the demo with its exit code if it fails."""
    code = subprocess.run(tidegate(*words), check=False).returncode
    if code:
        sys.exit(code)


def next_version(model: Path) -> int:
    """The first version number that is not taken: the demo may run twice."""
    taken = [int(path.name) for path in model.glob("*") if path.name.isdecimal()]
    return max(taken, default=0) + 1


@contextmanager
def serving(models: Path, data: Path) -> Iterator[tuple[str, str]]:
    """A server on free ports: its address, and the address of its metrics."""
    command = tidegate(
        "serve", "--models", models, "--data-dir", data, "--host", "127.0.0.1", "--port", 0, "--metrics-port", 0
    )
    with subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready: "):
                sys.exit(process.wait(SECONDS_TO_START))
            console.print(line.strip(), soft_wrap=True)
            facts = dict(word.split("=", 1) for word in line.split()[1:])
            yield facts["grpc"], facts["metrics"]
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(SECONDS_TO_STOP)
    if code:
        console.print(f"The server ended with exit code {code}, expected 0.")
        sys.exit(1)


def print_latency(url: str, version: str) -> None:
    """Prints the median and the 99th percentile of each stage, as Prometheus would work them out."""
    with urlopen(url, timeout=10) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    table = Table(box=None, header_style="bold")
    for name in ("metric", "what", "count", "median", "99%"):
        table.add_column(name, justify="left" if name in ("metric", "what") else "right")
    for stage, text in STAGES.items():
        counts: Counter[float] = Counter()  # by bound, of all workers
        for sample in families[f"tidegate_{stage}"].samples:
            if sample.name.endswith("_bucket") and sample.labels["version"] == version:
                counts[float(sample.labels["le"])] += int(sample.value)
        buckets = [(bound, float(count)) for bound, count in counts.items()]
        table.add_row(
            stage,
            text,
            f"{buckets[-1][1]:,.0f}",
            microseconds(quantile(buckets, 0.5)),
            microseconds(quantile(buckets, 0.99)),
        )
    console.print(table)


def quantile(buckets: list[tuple[float, float]], level: float) -> float:
    """A quantile from cumulative buckets (bound, count), linear within a bucket, as Prometheus' histogram_quantile."""
    rank = level * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            return low if bound == float("inf") else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    raise AssertionError("the last bucket holds everything")


def microseconds(seconds: float) -> str:
    """Seconds as people read them here."""
    return f"{1e6 * seconds:,.0f} µs"


def judge(scores: list[dict[str, float]], plot: Path) -> None:
    """Says how the served model did; exits with 1 if persistence is better anywhere."""
    title("4. Was it worth it?")
    for score in scores:
        skill = 100 * (1 - score["mae"] / score["persistence_mae"])
        naive = 100 * (1 - score["mae"] / score["seasonal_mae"])
        console.print(
            f"{score['target']}, {score['horizon']:>3} timesteps ahead: error {skill:.0f}% below persistence, "
            f"{naive:.0f}% below seasonal-naive",
            soft_wrap=True,
        )
    console.print(f"The picture is {plot}.")
    if any(score["mae"] >= score["persistence_mae"] for score in scores):
        console.print("The model does not beat persistence at every horizon.")
        sys.exit(1)


if __name__ == "__main__":
    main()
