"""The protocol in other languages: their tools take it, and what they make of it compiles and speaks the same."""

from pathlib import Path

import pytest

from tests.stubs.attempt import compile_program, generate, run
from tests.stubs.languages import LANGUAGES, Language
from tests.tools import missing


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_a_client_can_be_made_of_the_proto(language: Language, tmp_path: Path) -> None:
    """A program that builds a request with the generated code prints the bytes that Python has for it."""
    if language.missing and language.cheap:
        missing(f"{language.name} is missing {language.missing}")
    if language.missing:
        pytest.skip(f"{language.name} is missing {language.missing}")
    generate(language, tmp_path)
    compile_program(language, tmp_path)
    run(language, tmp_path)
