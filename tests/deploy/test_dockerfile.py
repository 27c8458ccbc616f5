"""The Dockerfile: hadolint finds no fault in it."""

import subprocess

from tests.deploy.chart import deploy_tool
from tests.root import ROOT
from tests.timeouts import TIMEOUT_S


def test_hadolint_finds_no_fault() -> None:
    """With all of its rules."""
    command = [deploy_tool("hadolint"), "--no-color", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout
