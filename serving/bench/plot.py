"""Draws the result of a bench run: latency by percentile, and rate and latency over time. Needs matplotlib."""

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from tidegate.bench.display import format_seconds, title
from tidegate.bench.result import Result

mpl.use("Agg")  # draws to a file, without a display
from matplotlib import pyplot as plt

PERCENTILES = {
    0.0: "0",
    0.5: "50",
    0.9: "90",
    0.99: "99",
    0.999: "99.9",
    0.9999: "99.99",
    0.99999: "99.999",
    1 - 1e-6: "99.9999",
}

# A latency axis covers at least this factor.
AXIS_RATIO_MIN = 10.0


def save_plot(result: Result, path: Path) -> None:
    """Writes the picture as PNG."""
    figure, (percentiles, rate, time) = plt.subplots(
        3, 1, figsize=(11, 11.5), height_ratios=(1.5, 1, 1), layout="constrained"
    )
    figure.suptitle(title(result), fontsize=13, fontweight="bold")
    _plot_percentiles(percentiles, result)
    _plot_rate(rate, result)
    _plot_latency(time, result)
    for axis in (rate, time):
        axis.set_xlim(0, max(result.seconds, 1.0))
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), frameon=False, ncols=3)
    for axis in (percentiles, rate, time):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    machine = result.machine
    figure.supxlabel(
        f"{result.begun:%Y-%m-%d %H:%M} UTC; clients on {machine.cores} cores of {machine.cpu}; "
        f"tidegate {machine.packages['tidegate']}, grpcio {machine.packages['grpcio']}",
        fontsize=8,
        color="0.4",
    )
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _plot_percentiles(axis: Axes, result: Result) -> None:
    """Plots latency by percentile. Each tick to the right is ten times rarer."""
    missing = result.timesteps.unsent + result.timesteps.unanswered
    counts = np.array([bucket.count for bucket in result.histogram], np.int64)
    total = int(counts.sum()) + missing
    since = "sent" if result.settings.rate is None else "due"
    axis.set_title(f"Latency from when a timestep was {since}, by percentile", loc="left", fontsize=10)
    axis.set_ylabel("latency")
    axis.set_xlabel("percentile of timesteps, %")
    if not total or not len(counts):
        axis.text(0.5, 0.5, "no answers", transform=axis.transAxes, ha="center")
        return
    latency = np.array([bucket.at_most for bucket in result.histogram])
    # A bucket covers the shares from that of all faster answers to that including its own.
    before = (np.cumsum(counts) - counts) / total
    after = np.minimum(np.cumsum(counts) / total, 1 - 1 / (total + 1))
    shares = np.column_stack([before, after]).ravel()
    axis.plot(-np.log10(1 - shares), np.repeat(latency, 2), color="tab:blue", linewidth=1.6)
    for fraction in (0.5, 0.99):
        _annotate_percentile(axis, fraction, result.latency.p50 if fraction == 0.5 else result.latency.p99)
    if missing:
        known = -math.log10(missing / total)
        axis.axvspan(known, -math.log10(1 / (total + 1)), color="tab:red", alpha=0.12, linewidth=0)
        axis.annotate(
            f"never answered: {missing / total:.2%}",
            (known, 0.92),
            xycoords=("data", "axes fraction"),
            xytext=(6, 0),
            textcoords="offset points",
            color="tab:red",
        )
    shown = {fraction: text for fraction, text in PERCENTILES.items() if 1 - fraction >= 1 / (total + 1)}
    axis.set_xticks([-math.log10(1 - fraction) for fraction in shown], list(shown.values()))
    axis.set_xlim(0, -math.log10(1 / (total + 1)))
    _seconds_axis(axis)


def _annotate_percentile(axis: Axes, fraction: float, seconds: float | None) -> None:
    if seconds is None:
        return
    index = -math.log10(1 - fraction)
    axis.plot([index], [seconds], "o", color="tab:blue", markersize=5)
    axis.annotate(
        f"p{fraction * 100:g}: {format_seconds(seconds)}", (index, seconds), xytext=(8, -14), textcoords="offset points"
    )


def _plot_rate(axis: Axes, result: Result) -> None:
    """Plots the offered and achieved rate per second."""
    whole_seconds = _whole_seconds(result)
    axis.set_title(
        f"Timesteps a second: {result.achieved_per_s:,.0f} achieved"
        + ("" if result.settings.rate is None else f" of {result.offered_per_s:,.0f} offered"),
        loc="left",
        fontsize=10,
    )
    seconds = [second.second + 0.5 for second in result.series[:whole_seconds]]
    if result.settings.rate is not None:
        offered = [second.offered for second in result.series[:whole_seconds]]
        axis.plot(seconds, offered, color="0.6", linewidth=3.5, alpha=0.6, label="offered")
    axis.plot(
        seconds,
        [second.answered for second in result.series[:whole_seconds]],
        "o-",
        color="tab:blue",
        markersize=3,
        label="achieved",
    )
    refused = [second.refused for second in result.series[:whole_seconds]]
    if any(refused):
        axis.plot(seconds, refused, color="tab:red", linewidth=1.3, label="refused")
    axis.margins(y=0.15)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("timesteps/s")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _plot_latency(axis: Axes, result: Result) -> None:
    """Plots percentiles per second."""
    axis.set_title("Latency of the answers of each second", loc="left", fontsize=10)
    seconds = [second.second + 0.5 for second in result.series]
    for name, color in (("p50", "tab:blue"), ("p99", "tab:orange"), ("max", "0.6")):
        values = [getattr(second.latency, name) for second in result.series]
        heights = [math.nan if value is None else value for value in values]
        axis.plot(seconds, heights, "o-", color=color, markersize=3, label=name)
    axis.set_ylabel("latency")
    axis.set_xlabel("second of the measured time")
    _seconds_axis(axis)


def _whole_seconds(result: Result) -> int:
    """Counts the complete seconds. The rate of an incomplete second would be too low."""
    return sum(second.second + 1 <= result.seconds + 1e-3 for second in result.series)


def _seconds_axis(axis: Axes) -> None:
    """Makes a logarithmic axis with ticks at 1, 2 and 5 of each decade, with units."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high < AXIS_RATIO_MIN * low:  # else a tenth of a millisecond would look large
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(AXIS_RATIO_MIN), middle * math.sqrt(AXIS_RATIO_MIN)
        axis.set_ylim(low, high)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [head * 10.0**decade for decade in range(first, last + 1) for head in (1, 2, 5)]
    axis.set_yticks([tick for tick in ticks if low <= tick <= high])
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_seconds(value)))
    axis.set_yticks([], minor=True)
