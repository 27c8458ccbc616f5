"""Sections of the report: errors, intervals and skill beside those of the baselines."""

from collections.abc import Sequence

from tidegate.training.judging.replay import DRAWN
from tidegate.training.judging.verdict import BASELINE_NAMES
from tidegate.training.publishing import charts
from tidegate.training.publishing.page import Html, figure, grid, section, table, tag
from tidegate.training.publishing.report.content import Json, ReportContent, quantile_levels
from tidegate.training.publishing.report.formats import digits, percent, stacked, with_unit


def against_baselines(content: ReportContent) -> Html:
    """Errors and skill of each target and horizon, beside the baselines."""
    baselines = [name for name in BASELINE_NAMES if any(row.get(name) for row in content.table)]
    headings = ["ahead", "model", "skill", *(BASELINE_NAMES[name] for name in baselines), "MASE", "scored"]
    parts = [
        table(
            headings,
            [_error_row(content, row, baselines) for row in rows],
            f"{with_unit(target, rows[0]['unit'])}: absolute error",
        )
        for target, rows in content.by_target.items()
    ]
    how = (
        "Mean absolute error on the held-out part, and below it the root mean squared error: lower is better. Skill is the "
        "reduction of the error of the best baseline: 0 is no better, 100 % is perfect. MASE is the error divided by that "
        "of the naive forecast on the training part. In red: a baseline that the model does not beat. Scored is the share of the "
        "held-out timesteps whose true value is known, and that every baseline forecasts."
    )
    return section("Against the baselines", how, *parts)


def _error_row(content: ReportContent, row: Json, baselines: Sequence[str]) -> list[str]:
    """Horizon, errors, skill and MASE; a baseline that is not beaten stands out."""
    cells = [content.horizon_text(row["horizon"]), _errors(row["model"], "best" if row["beats_baselines"] else "")]
    cells.append(tag("span", percent(row["skill"]), kind="lost" if row["skill"] <= 0 else "best"))
    cells += [_errors(row.get(name), "lost" if _unbeaten(row, name) else "") for name in baselines]
    return [*cells, digits(row["model"].get("mase"), 3), percent(row.get("share"))]


def intervals(content: ReportContent) -> Html:
    """Pinball loss, coverage and width of quantiles and intervals."""
    rows = [row for row in content.table if row["model"].get("pinball") is not None or row.get("interval")]
    baselines = [
        name for name in BASELINE_NAMES if any((row.get(name) or {}).get("pinball") is not None for row in rows)
    ]
    calibrated = any(row.get("interval") for row in rows)
    parts = []
    for target in dict.fromkeys(row["target"] for row in rows):
        own_rows = [row for row in rows if row["target"] == target]
        headings = ["ahead", "model", *(BASELINE_NAMES[name] for name in baselines), *["calibrated"] * calibrated]
        body = [
            [
                content.horizon_text(row["horizon"]),
                *(_pinball(row.get(name)) for name in ("model", *baselines)),
                *[_calibrated(row.get("interval"))] * calibrated,
            ]
            for row in own_rows
        ]
        parts.append(table(headings, body, f"{with_unit(target, own_rows[0]['unit'])}: pinball loss"))
    levels = quantile_levels(content)
    stated = f", which should be {100 * (levels[-1] - levels[0]):.0f} %" if len(levels) > 1 else ""
    how = (
        "Pinball loss of the quantiles: lower is better. Below it, the share of true values between the lowest and the "
        f"highest quantile{stated}, and the mean width of that interval. The quantiles of a baseline are those of its errors "
        "on the validation part."
    )
    if calibrated:
        how += " Calibrated: the interval that the graph corrects while it runs, its coverage and width, and its nominal coverage."
    return section("Intervals", how, *parts)


def skill(content: ReportContent) -> Html:
    """Skill by horizon, as bars."""
    parts = []
    for target, rows in list(content.by_target.items())[:DRAWN]:
        bars = [
            # A skill has no lower end; a bar has.
            (
                content.horizon_text(row["horizon"]),
                max(row["skill"], -1.0),
                percent(row["skill"]),
                "ab"[row["skill"] <= 0],
            )
            for row in rows
        ]
        parts.append(figure(target, charts.bar_rows(f"{target}: skill by horizon", bars)))
    how = "The reduction of the error of the best baseline, by horizon. A bar to the left is worse, and ends at −100 %."
    return section("Skill by horizon", how, grid(*parts))


def _unbeaten(row: Json, baseline: str) -> bool:
    """Whether the baseline is at least as good as the model."""
    other = row.get(baseline)
    return other is not None and other["mae"] <= row["model"]["mae"]


def _errors(error: Json | None, kind: str) -> str:
    """MAE, and below it RMSE."""
    return stacked(digits(error["mae"]), digits(error["rmse"]), kind) if error else "-"


def _pinball(error: Json | None) -> str:
    """Pinball loss, and below it coverage and width."""
    if not error or error.get("pinball") is None:
        return "-"
    holds = f"{percent(error['coverage'])}, {digits(error['width'], 3)}" if error.get("coverage") is not None else ""
    return stacked(digits(error["pinball"]), holds)


def _calibrated(interval: Json | None) -> str:
    """The coverage of the interval of the graph and its width, and below it the nominal coverage."""
    if not interval:
        return "-"
    stated = f"should be {percent(interval['nominal'])}" if interval.get("nominal") is not None else ""
    return stacked(f"{percent(interval['coverage'])}, {digits(interval['width'], 3)}", stated)
