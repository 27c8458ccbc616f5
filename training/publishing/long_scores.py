"""Scores of many targets and horizons: a few rows stay in the card, all of them are in a file beside it."""

from typing import Any

Json = dict[str, Any]

FILE = "scores.json"
# Rows of a table in the card. More are for programs, and a card is read by people too.
CARD_ROWS = 24


def split_scores(card: Json) -> tuple[Json, Json | None]:
    """The card with a part of each long table, and the whole scores; None if no table is long.

    The rows that stay are evenly chosen, and `rows_left_out` says how many did not.
    """
    scores = card.get("scores") or {}
    cold = scores.get("cold_start")
    short = scores | _shortened(scores) | ({"cold_start": cold | _shortened(cold)} if cold else {})
    if short == scores:
        return card, None
    return card | {"scores": short}, scores


def join_scores(card: Json, scores: Json) -> Json:
    """The card as it was before `split_scores`."""
    return card | {"scores": scores}


def _shortened(part: Json) -> Json:
    """The changed keys of a part with a table."""
    table = part.get("table", ())
    if len(table) <= CARD_ROWS:
        return {}
    rows = [table[index * len(table) // CARD_ROWS] for index in range(CARD_ROWS)]
    return {"table": rows, "rows_left_out": len(table) - len(rows), "file": FILE}
