"""Runs the image of TIDEGATE_IMAGE in docker, or in podman where no docker runs, as locked down as it goes."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.timeouts import TIMEOUT_S
from tests.tools import missing

IMAGE = os.environ.get("TIDEGATE_IMAGE", "")
# Read-only, without a folder for temporary files, without rights that a root user has, and no way to get any.
LOCKED_DOWN = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
# What a machine may have without systemd, and without the right to raise limits.
COMMON = ("--network", "host", "--no-healthcheck", "--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096")


@cache
def engine() -> tuple[str, ...]:
    """The command of the container engine; skips or fails like `find_tool`."""
    for command in (("docker",), ("podman", "--runtime", "runc")):
        if shutil.which(command[0]) is None:
            continue
        if subprocess.run([*command, "info"], capture_output=True, check=False, timeout=TIMEOUT_S).returncode == 0:
            return command
    return missing("no container engine runs here: apt-get install podman runc")


def run_in(image: str, program: str, arguments: Sequence[str], *options: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program of an image to its end."""
    command = [*_run("65532:65532"), *options, "--entrypoint", program, image, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * TIMEOUT_S)


def ask(program: str) -> Any:
    """What a Python program in the image prints as JSON."""
    done = run_in(IMAGE, "python", ["-c", program])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def inspect_image(image: str) -> dict[str, Any]:
    """What the engine knows of an image."""
    said = subprocess.run([*engine(), "image", "inspect", image], capture_output=True, check=True, timeout=TIMEOUT_S)
    described: dict[str, Any] = json.loads(said.stdout)[0]
    return described


def has_image(image: str) -> bool:
    """Whether the engine has an image of exactly this name."""
    return subprocess.run([*engine(), "image", "inspect", image], capture_output=True, check=False).returncode == 0


class Server:
    """A container that serves."""

    def __init__(self, name: str, popen: "subprocess.Popen[str]") -> None:
        self.name = name
        self.popen = popen

    def wait_until_ready(self) -> str:
        """Returns the ready line."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line.startswith("ready:"), self.popen.communicate(timeout=TIMEOUT_S)
        return line

    def health(self) -> "subprocess.CompletedProcess[str]":
        """Runs the image's own health check, as the engine does."""
        described = inspect_image(IMAGE)
        # Docker has it in the settings of the image, podman beside them.
        kind, *command = (described.get("Healthcheck") or described["Config"]["Healthcheck"])["Test"]
        assert kind == "CMD"
        return self.exec(*command)

    def exec(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a program beside the server."""
        return subprocess.run(
            [*engine(), "exec", self.name, *command], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )

    def stop(self, grace_s: int) -> tuple[int, str]:
        """SIGTERM, and SIGKILL after the grace time. Returns the exit code and the log."""
        subprocess.run([*engine(), "stop", "--time", str(grace_s), self.name], check=True, capture_output=True)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Waits for its end. Returns the exit code and the log."""
        _, log = self.popen.communicate(timeout=TIMEOUT_S)
        return self.popen.returncode, log


@contextmanager
def serve(data: str | Path, *options: str, user: str, variables: dict[str, str]) -> Iterator[Server]:
    """Starts a server whose /data is a volume or a folder."""
    name = f"tidegate-test-{uuid4().hex[:12]}"
    settings = [word for pair in variables.items() for word in ("--env", "=".join(pair))]
    command = [*_run(user), "--name", name, "--volume", f"{data}:/data", *settings, *options, IMAGE, "serve"]
    # Of a process group of its own: it gets only the signals that the engine sends.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as popen:
        try:
            yield Server(name, popen)
        finally:
            subprocess.run([*engine(), "rm", "--force", name], check=False, capture_output=True)
            if popen.poll() is None:
                popen.send_signal(signal.SIGKILL)


@contextmanager
def volume() -> Iterator[str]:
    """A new volume. At its first use the engine gives it the mode of the folder in the image."""
    name = f"tidegate-test-{uuid4().hex[:12]}"
    subprocess.run([*engine(), "volume", "create", name], check=True, capture_output=True)
    try:
        yield name
    finally:
        subprocess.run([*engine(), "volume", "rm", "--force", name], check=True, capture_output=True)


def _run(user: str) -> Sequence[str]:
    # By default podman gives a read-only container writable folders that docker does not give.
    temporary = ("--read-only-tmpfs=false",) if engine()[0] == "podman" else ()
    return [*engine(), "run", "--rm", *COMMON, *LOCKED_DOWN, *temporary, "--user", user]
