"""Sections of the report: forecasts and true values, their calibration, and their errors."""

from collections.abc import Callable, Sequence

import numpy as np

from tidegate.training.judging.replay import Numbers
from tidegate.training.publishing import charts, curves
from tidegate.training.publishing.charts import Plot, responsive
from tidegate.training.publishing.page import Html, figure, grid, section, tag
from tidegate.training.publishing.report.content import COLOURS, ReportContent, quantile_levels
from tidegate.training.publishing.report.formats import last_number, with_unit


def forecasts(content: ReportContent) -> Html:
    """A typical window of each target: forecasts and true values."""
    replayed, parts = content.replay, []
    for place, name, unit, horizons in content.shown():
        first, end = curves.typical_window(replayed, place)
        rows = slice(first, end)
        parts.append(tag("h3", with_unit(name, unit)))
        # One scale for all horizons, or the eye compares what cannot be compared.
        seen = [
            replayed.truth[rows, place],
            *(replayed.shifted("forecast", index)[rows, place] for index, _, _ in horizons),
        ]
        for index, ahead, _ in horizons:
            draw = _forecast_chart(
                content, rows, place, index, charts.linear(np.concatenate(seen), unit, ticks=4), name
            )
            parts.append(figure(f"{ahead} ahead", responsive(draw)))
    levels = content.replay.outputs.get("quantiles") is not None and quantile_levels(content)
    interval = f", the band from its {levels[0]:g} to its {levels[-1]:g} quantile" if levels else ""
    how = (
        f"The thin line is the true value, the blue one the forecast for that time{interval}. The window is, of the more active half "
        "of the held-out part, the one with the most typical error: neither the best nor the worst."
    )
    return section("Forecasts and true values", how, *parts)


def _forecast_chart(
    content: ReportContent, rows: slice, place: int, index: int, scale: charts.Scale, name: str
) -> Callable[[int], str]:
    """A function that draws one horizon of one target in a given width."""
    replayed = content.replay
    seconds = replayed.times[rows].astype("datetime64[ms]").astype(np.float64) / 1e3

    def draw(width: int) -> str:
        across = charts.calendar(replayed.times[rows], 8 if width > charts.NARROW else 3)
        plot = Plot(f"{name}: forecasts and truth", across, scale, width=width, height=170, names=("forecast",))
        band = "quantiles" in replayed.outputs
        if band:
            quantiles = np.clip(replayed.shifted("quantiles", index)[rows, place], scale.low, scale.high)
            plot.band(seconds, quantiles[:, 0], quantiles[:, -1], "a")
        forecast, truth = replayed.shifted("forecast", index)[rows, place], replayed.truth[rows, place]
        plot.line(seconds, truth, "truth")
        plot.line(seconds, forecast, "a")
        plot.name([(last_number(forecast), "forecast", "a"), (last_number(truth), "truth", "truth")])
        return plot.svg()

    return draw


def calibration(content: ReportContent) -> Html:
    """Observed against stated shares."""
    rows = {(row["target"], row["horizon"]): row["model"].get("quantiles", ()) for row in content.table}
    parts = []
    for _, name, _, horizons in content.shown():
        lines = []
        for index, ahead, colour in horizons:
            scores = rows.get((name, content.replay.horizons[index]), ())
            if scores:
                lines.append((ahead, colour, [one["level"] for one in scores], [one["below"] for one in scores]))
        if lines:
            parts.append(figure(name, _diagonal(f"{name}: calibration", "stated", "observed", lines)))
    bins = (content.card["scores"].get("classification") or {}).get("confidence", ())
    if bins:
        lines = [("", COLOURS[0], [one["said"] for one in bins], [one["right"] for one in bins])]
        parts.append(
            figure("The likeliest class", _diagonal("reliability of the classes", "probability", "right", lines))
        )
    how = (
        "How often the true value should lie below a quantile, and how often it does."
        if rows
        else "How sure the model is of the likeliest class, and how often it is right."
    )
    return section("Calibration", f"{how} On the dashed line both are the same.", grid(*parts))


def _diagonal(about: str, x: str, y: str, lines: Sequence[tuple[str, str, list[float], list[float]]]) -> str:
    """Observed against stated shares, with the line where both are equal."""
    marks = tuple((place / 4, f"{place / 4:g}") for place in range(5))
    names = tuple(name for name, *_ in lines)
    plot = Plot(about, charts.Scale(0, 1, marks, x), charts.Scale(0, 1, marks, y), height=260, names=names)
    plot.line([0, 1], [0, 1], "ideal")
    for _, colour, stated, observed in lines:
        plot.line(stated, observed, colour)
        plot.dots(stated, observed, colour, 3.0)
    plot.name([(observed[-1], name, colour) for name, colour, _, observed in lines])
    return plot.svg()


def residuals(content: ReportContent) -> Html:
    """Histograms of the errors, and the absolute error by hour of day."""
    replayed, spread, hourly = content.replay, [], []
    period_s = content.card["description"]["period_s"]
    for place, name, unit, horizons in content.shown():
        errors = [(ahead, colour, replayed.errors(index)[:, place]) for index, ahead, colour in horizons]
        # The same edges for all horizons, so that a wide spread looks wide.
        edges = curves.bin_edges([error_values for *_, error_values in errors])
        for ahead, colour, error_values in errors:
            shares = 100 * curves.histogram(error_values, edges)
            scale = charts.linear(shares, "% of forecasts", zero=True, ticks=3)
            plot = Plot(f"{name}, {ahead} ahead: errors", charts.linear(edges, unit, ticks=4), scale, height=150)
            plot.bars(edges, shares, colour)
            plot.rule(0.0)
            spread.append(figure(f"{name}, {ahead} ahead", plot.svg()))
        # Of days there is no hour.
        if period_s is None or period_s < 43_200:
            lines = [
                (ahead, colour, curves.error_by_hour(replayed.times, error_values))
                for ahead, colour, error_values in errors
            ]
            hourly.append(figure(f"{name}, absolute error by hour of day", _hours(name, unit, lines)))
    how = (
        "Forecast minus true value: bars to the right of zero are forecasts that were too high, the outermost bars include all beyond. "
        "By hour of the day, on the clock of the data: at a peak the model is weak."
    )
    return section("Errors", how, grid(*spread), grid(*hourly))


def _hours(name: str, unit: str, lines: Sequence[tuple[str, str, Numbers]]) -> str:
    marks = tuple((hour, f"{hour}:00") for hour in (0, 6, 12, 18))
    scale = charts.linear(np.concatenate([errors for *_, errors in lines]), unit, zero=True, ticks=4)
    plot = Plot(f"{name}: error by hour", charts.Scale(0, 23, marks), scale, names=[ahead for ahead, *_ in lines])
    for _, colour, errors in lines:
        plot.line(np.arange(24), errors, colour)
    plot.name([(last_number(errors), ahead, colour) for ahead, colour, errors in lines])
    return plot.svg()
