"""The report of a version: one page that says what was learned, how good it is, and how to serve it.

All that it tells is in the card; all that it draws besides comes from one replay of the held-out part (`curves`). A section
is there when its data is. The same card and replay give the same bytes.
"""

from collections.abc import Callable

from training.publishing.page import Html, page
from training.publishing.report.about import data_section, footer, header, learning, serving_section, settings_section
from training.publishing.report.accuracy import against_baselines, intervals, skill
from training.publishing.report.detection import anomalies, classes, cold_start
from training.publishing.report.forecasts import calibration, forecasts, residuals
from training.publishing.report.material import Material

__all__ = ["Material", "build"]


def build(material: Material) -> str:
    """The page."""
    card = material.card
    return page(f"{card['name']}, version {card['version']}", *(part(material) for part in PARTS))


PARTS: tuple[Callable[[Material], Html], ...] = (
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
