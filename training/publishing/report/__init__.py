"""The report of a version: one page with its training, its scores, and how to serve it.

All text comes from the card. All charts come from the card and from the replay of the held-out part. A section appears if
there is data for it. The same card and replay give the same bytes.
"""

from collections.abc import Callable

from tidegate.training.publishing.page import Html, page
from tidegate.training.publishing.report.about import (
    data_section,
    footer,
    header,
    learning,
    serving_section,
    settings_section,
)
from tidegate.training.publishing.report.accuracy import against_baselines, intervals, skill
from tidegate.training.publishing.report.content import ReportContent
from tidegate.training.publishing.report.detection import anomalies, classes, cold_start
from tidegate.training.publishing.report.forecasts import calibration, forecasts, residuals

__all__ = ["ReportContent", "build"]


def build(content: ReportContent) -> str:
    """The page as HTML."""
    card = content.card
    return page(f"{card['name']}, version {card['version']}", *(part(content) for part in SECTIONS))


SECTIONS: tuple[Callable[[ReportContent], Html], ...] = (
    header,
    against_baselines,
    classes,
    intervals,
    forecasts,
    skill,
    calibration,
    residuals,
    anomalies,
    cold_start,
    learning,
    data_section,
    settings_section,
    serving_section,
    footer,
)
