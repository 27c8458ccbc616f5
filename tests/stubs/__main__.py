"""Generates, compiles and runs the client code of every language whose tools are here, and prints a table: `make stubs`.

Ends with 1 when a language whose tools are here fails; of a language whose tools are not, the table says what is missing.
"""

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.stubs.attempt import StubsBroken, compile_program, generate, run, version
from tests.stubs.languages import LANGUAGES, Language


def fill(table: Table, language: Language, out: Path) -> str:
    """Adds the row of a language; returns what went wrong, empty if nothing did."""
    if language.missing:
        table.add_row(language.name, "", "", "", "", f"missing: {language.missing}")
        return ""
    cells = [language.name]
    failure = ""
    try:
        cells.append(version(language))
        for stage, command in (
            (generate, language.generate),
            (compile_program, language.compile),
            (run, language.run),
        ):
            stage(language, out)
            cells.append("yes" if command else "–")
    except StubsBroken as error:
        cells.append("no")
        failure = str(error)
    table.add_row(*cells, *[""] * (5 - len(cells)), language.note)
    return failure


def main() -> int:
    """Prints the table, then what went wrong; returns the exit code."""
    table = Table("language", "generator", "generated", "compiled", "ran", "note")
    failures = []
    for language in LANGUAGES:
        with tempfile.TemporaryDirectory() as folder:
            failures.append(fill(table, language, Path(folder)))
    console = Console(width=150)  # what the widest row takes, also where no terminal shows it
    console.print(table)
    for failure in filter(None, failures):
        console.print(failure, markup=False, highlight=False, soft_wrap=True)
    return int(any(failures))


if __name__ == "__main__":
    sys.exit(main())
