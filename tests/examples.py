"""How many examples Hypothesis tries."""

import os


def examples(count: int) -> int:
    """So many; `TIDEGATE_EXAMPLES=10` makes them ten times as many, for who changes what they test."""
    return round(count * float(os.environ.get("TIDEGATE_EXAMPLES", "1")))
