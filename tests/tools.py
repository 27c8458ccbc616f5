"""Programs that some tests run and that are not part of Python."""

import os
import shutil
import sysconfig
from typing import NoReturn

import pytest

from tests.root import ROOT


def find_tool(name: str, source: str) -> str:
    """The path of a program; `source` names how to install it.

    If it is missing the test is skipped, or fails if the environment requires all tests.
    """
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    if (found := shutil.which(name, path=path)) is None:
        missing(f"{name} is missing: {source}")
    return found


def protoc_python() -> str:
    """The Python that has the protoc of `make protos`; skips or fails like `find_tool`."""
    python = ROOT / ".venv-protoc" / "bin" / "python"
    if not python.exists():
        missing("protoc is missing: run `make .venv-protoc/.ready`")
    return str(python)


def tritonclient_python() -> str:
    """The Python that has the client library of Triton; skips or fails like `find_tool`."""
    python = ROOT / ".venv-tritonclient" / "bin" / "python"
    if not python.exists():
        missing("tritonclient is missing: run `make .venv-tritonclient/.ready`")
    return str(python)


def missing(why: str) -> NoReturn:
    """Skips the current test, or fails it if the environment requires all tests."""
    if os.environ.get("TIDEGATE_REQUIRE_ALL") == "1":
        pytest.fail(why)
    pytest.skip(why)
