"""The wheel as people install it: the client alone, with the oldest versions that it allows, and beside packages of others."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.graphs import running_sum, write_model
from tests.root import ROOT
from tests.servers import serve
from tests.timeouts import TIMEOUT_S

# The lower ends of the ranges in pyproject.toml; the upper ends are what the other tests run with.
OLDEST = ("grpcio==1.76.0", "grpcio-status==1.76.0", "numpy==1.26.4", "protobuf==6.31.1")
CLIENT = """
import asyncio, sys
from tidegate.client import Client

async def main():
    async with Client(sys.argv[1]) as client, client.open("wheel") as stream:
        for value in (1.0, 2.0, 3.0):
            prediction = await stream.step([value])
    print(prediction.step, prediction["sum"].item())

asyncio.run(main())
"""


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, without what this process was told to import."""
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=10 * TIMEOUT_S,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT), cwd=folder
    )
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("tidegate-*.whl")
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Callable[..., Path]:
    """Makes an environment with the wheel and what else is named; gives its folder of programs."""

    def make(*packages: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        made = run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
        assert made.returncode == 0, made.stderr
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "--python",
            str(folder / "bin" / "python"),
        )
        installed = run(*pip, "install", "--no-compile", str(wheel), *packages, cwd=folder)
        assert installed.returncode == 0, installed.stderr
        return folder / "bin"

    return make


def test_a_client_installed_alone_streams(environment: Callable[..., Path], tmp_path: Path) -> None:
    """With the oldest versions of what it needs, where a folder `protos` or `serving` of the user's own lies beside the program."""
    programs = environment(*OLDEST)
    for name in ("protos", "serving"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('this is the user\\'s own')\n")
    (tmp_path / "program.py").write_text(CLIENT)
    with serve(write_model(tmp_path / "models", running_sum()), "--state", "memory:") as server:
        streamed = run(str(programs / "python"), "program.py", server.address, cwd=tmp_path)
    assert (streamed.returncode, streamed.stdout) == (0, "3 6.0\n"), streamed.stderr
    command = run(str(programs / "tidegate"), "serve", cwd=tmp_path)
    assert command.returncode == 2
    assert "pip install 'tidegate[server]'" in command.stderr
    assert len(command.stderr.splitlines()) == 1


def test_a_client_streams_beside_another_package_of_the_field(environment: Callable[..., Path], tmp_path: Path) -> None:
    """Tritonclient holds protobuf below 7: one environment serves both."""
    programs = environment("tritonclient[grpc]==2.73.0")
    (tmp_path / "program.py").write_text("import tritonclient.grpc\n" + CLIENT)
    with serve(write_model(tmp_path / "models", running_sum()), "--state", "memory:") as server:
        streamed = run(str(programs / "python"), "program.py", server.address, cwd=tmp_path)
    assert (streamed.returncode, streamed.stdout) == (0, "3 6.0\n"), streamed.stderr
