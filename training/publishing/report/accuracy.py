"""Sections of the report: errors, intervals and skill beside those of the baselines."""

from collections.abc import Sequence

from training.judging.verdict import NAMES
from training.publishing import charts
from training.publishing.page import Html, figure, grid, section, table, tag
from training.publishing.report.material import SHOWN, Json, Material, quantile_levels
from training.publishing.report.words import digits, percent, stacked, with_unit


def against_baselines(material: Material) -> Html:
    """Errors and skill of each target and horizon, beside the baselines."""
    rows = material.table
    rivals = [name for name in NAMES if any(row.get(name) for row in rows)]
    parts = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        headings = ["ahead", "model", "skill", *(NAMES[name] for name in rivals), "MASE"]
        body = [_error_row(material, row, rivals) for row in mine]
        parts.append(table(headings, body, f"{with_unit(target, mine[0]['unit'])}: absolute error"))
    how = (
        "Mean absolute error on the held-out part, and below it the root mean squared error: lower is better. Skill is the "
        "share of the best baseline's error that the model takes away: 0 is no better, 100 % is perfect. MASE is the error "
        "in units of what a naive forecast has on the training part. In red: a baseline that the model does not beat."
    )
    return section("Against the baselines", how, *parts)


def _error_row(material: Material, row: Json, rivals: Sequence[str]) -> list[str]:
    """Ahead, the errors, skill and MASE; a rival that is not beaten stands out."""
    cells = [material.ahead(row["horizon"]), _errors(row["model"], "best" if row["beats_baselines"] else "")]
    cells.append(tag("span", percent(row["skill"]), kind="lost" if row["skill"] <= 0 else "best"))
    cells += [_errors(row.get(name), "lost" if _unbeaten(row, name) else "") for name in rivals]
    return [*cells, digits(row["model"].get("mase"), 3)]


def intervals(material: Material) -> Html:
    """Pinball loss, coverage and width of quantiles and intervals."""
    rows = [row for row in material.table if row["model"].get("pinball") is not None or row.get("interval")]
    rivals = [name for name in NAMES if any((row.get(name) or {}).get("pinball") is not None for row in rows)]
    calibrated = any(row.get("interval") for row in rows)
    parts = []
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        headings = ["ahead", "model", *(NAMES[name] for name in rivals), *["calibrated"] * calibrated]
        body = [
            [
                material.ahead(row["horizon"]),
                *(_pinball(row.get(name)) for name in ("model", *rivals)),
                *[_calibrated(row.get("interval"))] * calibrated,
            ]
            for row in mine
        ]
        parts.append(table(headings, body, f"{with_unit(target, mine[0]['unit'])}: pinball loss"))
    levels = quantile_levels(material)
    stated = f", which should be {100 * (levels[-1] - levels[0]):.0f} %" if len(levels) > 1 else ""
    how = (
        "Pinball loss of the quantiles: lower is better. Below it, how much of what came true lies between the lowest and the "
        f"highest quantile{stated}, and how wide that is on average. The quantiles of a baseline are those of its errors on "
        "the validation part."
    )
    if calibrated:
        how += " Calibrated: the interval that the graph corrects while it runs, what it holds, and what it promises."
    return section("Intervals", how, *parts)


def skill(material: Material) -> Html:
    """Skill by horizon, as bars."""
    rows = material.table
    parts = []
    for target in list(dict.fromkeys(row["target"] for row in rows))[:SHOWN]:
        mine = [row for row in rows if row["target"] == target]
        bars = [
            # A skill has no lower end; a bar has.
            (
                material.ahead(row["horizon"]),
                max(row["skill"], -1.0),
                percent(row["skill"]),
                "ab"[row["skill"] <= 0],
            )
            for row in mine
        ]
        parts.append(figure(target, charts.bar_rows(f"{target}: skill by horizon", bars)))
    how = "The share of the best baseline's error that the model takes away, by how far ahead it looks: a bar to the left is worse, and ends at −100 %."
    return section("Skill by horizon", how, grid(*parts))


def _unbeaten(row: Json, rival: str) -> bool:
    """Whether the rival is at least as good as the model."""
    other = row.get(rival)
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
    """How much the interval of the graph holds and its width, and below it what it should hold."""
    if not interval:
        return "-"
    stated = f"should be {percent(interval['nominal'])}" if interval.get("nominal") is not None else ""
    return stacked(f"{percent(interval['coverage'])}, {digits(interval['width'], 3)}", stated)
