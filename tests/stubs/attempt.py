"""One language after the other: generate, compile, run."""

import os
import subprocess
from pathlib import Path

from tests.stubs.languages import HERE, ROOT, Language
from tests.tools import protoc_python
from tidegate.v1 import tidegate_pb2 as pb

# Compiling C++ takes ten seconds on an idle machine.
SECONDS_MAX = 300
# What every program builds: text, an enum, a number that does not fit into a double, and one that does.
REQUEST = pb.PredictRequest(
    open=pb.Open(stream_id="pump-7", existence=pb.EXISTENCE_MUST_BE_NEW, resume_from=2**63 - 2, kept_max=1000)
)


class StubsBroken(Exception):
    """The client code of a language cannot be generated or compiled, or does not do what it should."""


def version(language: Language) -> str:
    """Which generator it is."""
    return ", ".join(_shell(language, "version", language.version, HERE).split("\n"))


def generate(language: Language, out: Path) -> None:
    """Writes the client code into an empty folder; raises StubsBroken."""
    _shell(language, "generate", language.generate, out)


def compile_program(language: Language, out: Path) -> None:
    """Makes a program of what was generated; raises StubsBroken."""
    _shell(language, "compile", language.compile, out)


def run(language: Language, out: Path) -> None:
    """Runs the program; raises StubsBroken, also when it prints other bytes than those of the request."""
    printed = _shell(language, "run", language.run, out)
    if language.run and printed != REQUEST.SerializeToString().hex():
        expected = REQUEST.SerializeToString().hex()
        raise StubsBroken(f"{language.name}, run: got {printed!r}, expected {expected!r}, the bytes of {REQUEST}")


def _shell(language: Language, stage: str, command: str, out: Path) -> str:
    """What a command prints."""
    environment = os.environ | {"OUT": str(out), "PROGRAMS": str(HERE / "programs"), "PROTOC": protoc_python()}
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=SECONDS_MAX,
    )
    if finished.returncode != 0:
        raise StubsBroken(f"{language.name}, {stage}: {command.strip()} ended {finished.returncode}\n{finished.stdout}")
    return finished.stdout.strip()
