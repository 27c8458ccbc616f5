"""The protocol in other languages: their tools accept it, and the generated code compiles and encodes the same bytes."""

from pathlib import Path

import pytest

from tests.stubs.attempt import compile_program, generate, run
from tests.stubs.languages import LANGUAGES, Language
from tests.tools import missing


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_a_client_can_be_made_of_the_proto(language: Language, tmp_path: Path) -> None:
    """A program with the generated code prints the same bytes of a request as Python."""
    if language.missing and language.cheap:
        missing(f"{language.name} is missing {language.missing}")
    if language.missing:
        pytest.skip(f"{language.name} is missing {language.missing}")
    generate(language, tmp_path)
    compile_program(language, tmp_path)
    run(language, tmp_path)
