"""The whole line in about two minutes: learn from real sensor data, export, serve, stream, look at the figures.

    python examples/demo.py [--minutes M] [--folder demo]

Every step is a command that you could type yourself, and is printed before it runs. Exit code 1 says that the model did
not beat persistence on data that it had not seen.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

import common
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

STAGES = {
    "step_seconds": "timestep read to answer sent",
    "queue_seconds": "of which waiting for a batch",
    "run_seconds": "of which computing the batch",
}


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

    common.title("1. Learn from 19,735 rows of a house's sensors and export one timestep as ONNX")
    version = common.next_version(models / "appliances")
    common.run(
        "train", "--data", "appliances", "--target", "Appliances", "--calendar", "day", "--hidden", 32, "--dropout", 0.2,
        "--minutes", given.minutes, "--models", models, "--name", "appliances", "--version", version,
        "--out", folder / f"run-{version}", "--held-out", held_out,
    )  # fmt: skip

    common.title("2. Serve it, and stream the rows it has not seen, one timestep at a time")
    with common.serving(models, folder / "data") as (address, metrics_url):
        common.run(
            "stream", held_out, "--address", address, "--model", "appliances", "--plot", plot, "--scores", scores
        )
        common.title("3. What the server measured of itself")
        print_latency(metrics_url, str(version))
    common.say("The server has stopped cleanly.")
    judge(json.loads(scores.read_text("utf-8"))["scores"], plot, models / "appliances" / str(version) / "report.html")


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
    common.console.print(table)


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


def judge(scores: list[dict[str, float]], plot: Path, report: Path) -> None:
    """Says how the served model did; exits with 1 if persistence is as good anywhere."""
    common.title("4. Was it worth it?")
    for score in scores:
        skill = 100 * (1 - score["mae"] / score["persistence_mae"])
        naive = 100 * (1 - score["mae"] / score["seasonal_mae"])
        common.say(
            f"{score['target']}, {score['horizon']:>3} timesteps ahead: error {skill:.0f}% below persistence, "
            f"{naive:.0f}% below seasonal-naive"
        )
    common.say(f"The picture is {plot}, the model's report {report}.")
    better = all(score["mae"] < score["persistence_mae"] for score in scores)
    common.check("the model beats persistence at every horizon", holds=better)


if __name__ == "__main__":
    main()
