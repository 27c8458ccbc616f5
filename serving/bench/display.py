"""The terminal output: the progress per second, and the result as a table."""

from collections import deque
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tidegate.bench.counts import SecondCounts
from tidegate.bench.plan import Plan
from tidegate.bench.result import Latency, Result

# The rows of the live table.
SECONDS_SHOWN = 12
# Shown as the latency of a second without answers.
NO_LATENCY = "none"


class ProgressDisplay:
    """Shows the last seconds as a live table on a terminal, or one line per second elsewhere.

    The table disappears when the context ends.
    """

    def __init__(self, console: Console, plan: Plan) -> None:
        self._console = console
        self._plan = plan
        self._shown: deque[tuple[str, ...]] = deque(maxlen=SECONDS_SHOWN)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def print_line(self, text: str) -> None:
        """Prints a line of text."""
        self._console.print(text, highlight=False, markup=False)

    def show_second(self, number: int, second: SecondCounts) -> None:
        """Shows the counts of one second, of all processes."""
        refused = f", {second.refused:,} refused" if second.refused else ""
        offered = "" if self._plan.rate is None else f" of {second.offered:,} offered"
        latency = Latency.of(second.latency)
        if self._live is None:
            self.print_line(
                f"{_second_label(number, self._plan)}: {second.answered:,} steps/s{offered}, "
                f"p50 {format_seconds(latency.p50, NO_LATENCY)}, p99 {format_seconds(latency.p99, NO_LATENCY)}{refused}"
            )
            return
        self._shown.append(
            (
                _second_label(number, self._plan),
                f"{second.answered:,}",
                "" if self._plan.rate is None else f"{second.offered:,}",
                format_seconds(latency.p50, NO_LATENCY),
                format_seconds(latency.p99, NO_LATENCY),
                f"{second.refused:,}",
            )
        )
        table = Table(box=None, header_style="bold")
        for heading in ("second", "steps/s", "offered/s", "p50", "p99", "refused"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self._shown:
            table.add_row(*row)
        self._live.update(table, refresh=True)


def print_result(console: Console, result: Result) -> None:
    """Prints the result as tables, then its warnings and failures."""
    console.print(f"[bold]{escape(title(result))}", highlight=False, soft_wrap=True)
    facts = Table(box=None, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, text in _facts(result):
        facts.add_row(name, escape(text))
    console.print(facts, highlight=False)
    percentiles = Table(box=None, header_style="bold")
    percentiles.add_column("", style="bold", no_wrap=True)
    for heading in ("p50", "p90", "p99", "p99.9", "max"):
        percentiles.add_column(heading, justify="right", no_wrap=True)
    for name, latency in (("latency", result.latency), ("client lateness", result.clients.late)):
        if latency is not None:
            times = (latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max)
            percentiles.add_row(name, *(format_seconds(seconds) for seconds in times))
    console.print(percentiles, highlight=False)
    for warning in result.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    for failure in result.failures:
        console.print(f"[red]failed:[/] {escape(failure)}", highlight=False, soft_wrap=True)


def title(result: Result) -> str:
    """Describes the run in one line."""
    plan = result.settings
    loop = (
        f"{plan.rate:,g} timesteps/s offered, {plan.arrivals} arrivals"
        if plan.rate is not None
        else "closed loop" + (f", {format_seconds(plan.think)} between answer and next" if plan.think else "")
    )
    calls = "a call a timestep" if plan.unary else "single calls" if plan.block is None else f"blocks of {plan.block:,}"
    calls += ", Python client" if plan.client == "python" else ""
    return f"{result.model.name}/{result.model.version}, {result.streams.opened:,} streams, {calls}, {loop}"


def format_seconds(seconds: float | None, unknown: str = "never") -> str:
    """Formats a time with three digits in a suitable unit. `unknown` is the text for None."""
    if seconds is None:
        return unknown
    if seconds < 0.9995e-6:
        return f"{seconds * 1e9:.0f} ns"
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s"


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    steps, clients, server = result.timesteps, result.clients, result.server
    yield "measured", f"{result.seconds:.1f} s" + (", interrupted" if result.interrupted else "")
    if result.settings.rate is not None:
        yield "offered", f"{result.offered_per_s:,.0f} steps/s"
    yield "achieved", f"{result.achieved_per_s:,.0f} steps/s"
    counts = {"unsent": steps.unsent, "unanswered": steps.unanswered, "sent again": steps.again}
    more = "".join(f", {count:,} {name}" for name, count in counts.items() if count)
    yield "timesteps", f"{steps.answered:,} answered{more}"
    if steps.refused:
        yield "refused", ", ".join(f"{reason} {count:,}" for reason, count in steps.refused.items())
    busy = ", ".join(f"{share:.0%}" for share in clients.busy)
    yield "client CPU", f"{format_seconds(clients.cpu_s_per_step, 'no')} a step; processes at {busy} of a core"
    if server is not None:
        yield "server CPU", f"{format_seconds(server.cpu_s_per_step, 'no')} a step; {server.busy:.2f} cores"
        yield "server batches", "none" if server.batch_size is None else f"{server.batch_size:.3g} timesteps on average"
        medians = {"step": server.step_p50_s, "queue": server.queue_p50_s, "run": server.run_p50_s}
        yield (
            "server medians",
            ", ".join(f"{name} {format_seconds(value, 'unknown')}" for name, value in medians.items()),
        )


def _second_label(number: int, plan: Plan) -> str:
    return "warm-up" if number < 0 else f"{number + 1} s of {plan.seconds:g} s"
