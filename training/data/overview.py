"""An overview of a series in a few lines: what was read, before anybody waits for a training."""

from tidegate.training.data.gaps import absence, present_rows
from tidegate.training.data.series import Series, duration_text


def overview(series: Series) -> list[str]:
    """Rows, range and period; then gaps and the longest stretch, if there are gaps."""
    absent = absence(series)
    groups = f" in {len(series.groups):,} groups" if series.groups else ""
    first, last = (
        min(series.times[low] for low, _ in series.spans),
        max(series.times[end - 1] for _, end in series.spans),
    )
    when = "numbered, without times" if series.is_numbered else f"{series.stamp(first)} to {series.stamp(last)}"
    if series.period_s is not None:
        step = f", a row every {duration_text(series.period_s)}"
    else:
        step = (
            "" if series.is_numbered else f", at irregular times, usually {duration_text(series.median_step_s)} apart"
        )
    lines = [
        f"{series.name}: {present_rows(series, series.spans):,} rows of {len(series.names)} features{groups}, {when}{step}"
    ]
    if absent.gaps:
        length = duration_text(absent.longest * series.median_step_s)
        lines.append(f"{absent.text}; the longest stretch has {absent.longest:,} rows, {length}")
    return lines
