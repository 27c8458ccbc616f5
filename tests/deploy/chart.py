"""The Helm chart, rendered by the real helm, and the programs that its tests need."""

import subprocess
from functools import cache
from pathlib import Path

from tests.root import ROOT
from tests.timeouts import TIMEOUT_S
from tests.tools import missing

CHART = ROOT / "deploy" / "helm" / "tidegate"
PROGRAMS = ROOT / ".venv-deploy" / "bin"
RELEASE = "plant"


def deploy_tool(name: str) -> Path:
    """The path of a program; skips or fails like `find_tool`."""
    path = PROGRAMS / name
    if not path.exists():
        missing(f"{name} is missing: run `make .venv-deploy/.ready`")
    return path


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs helm with these arguments."""
    command = [deploy_tool("helm"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


@cache
def render(*settings: str) -> str:
    """The manifests with these settings, such as "replicas=5"."""
    done = helm("template", RELEASE, str(CHART), *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    return done.stdout
