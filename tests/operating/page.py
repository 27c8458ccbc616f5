"""The commands of docs/operating.md, and a shell in which they are run as they stand there."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.ports import free_port
from tests.root import ROOT
from tests.servers import environment
from tests.timeouts import TIMEOUT_S

PAGE = (ROOT / "docs" / "operating.md").read_text("utf-8")
_MARK = re.compile(r"<!-- (run|run in the repository|not run)(?:: (.+))? -->")
# The end of a block's output, which no command prints.
_END = "== the end of the block =="


class Block(NamedTuple):
    """A fenced block: the heading above it, its language and text, and whether and why it is run or not."""

    section: str
    language: str
    text: str
    mark: str
    reason: str


def page_blocks() -> list[Block]:
    """All blocks of the page, in their order."""
    found, section, before = [], "", ""
    lines = iter(PAGE.splitlines())
    for line in lines:
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif line.startswith("```"):
            text = "".join(f"{each}\n" for each in iter(lines.__next__, "```"))
            mark = _MARK.fullmatch(before)
            found.append(Block(section, line[3:], text, *(mark.groups("") if mark else ("", ""))))
        before = line
    return found


def blocks_to_run(section: str, mark: str = "run") -> list[str]:
    """The commands of a section that are run, one text for each block."""
    return [block.text for block in page_blocks() if (block.section, block.mark) == (section, mark)]


@dataclass
class Shell:
    """A bash that runs blocks one after the other, in one folder; the first command that fails ends it.

    Attributes:
        folder: where it runs.
        port: the port of gRPC of the servers that it starts.
        metrics_port: their port of metrics.

    """

    folder: Path
    process: asyncio.subprocess.Process
    port: int
    metrics_port: int
    ports: dict[str, str]

    async def run(self, block: str) -> str:
        """Runs the commands and returns what they print. Fails with their output when one of them fails."""
        for shown, used in self.ports.items():
            block = re.sub(rf"\b{shown}\b", used, block)
        script = self.folder / "block.sh"
        script.write_text(block)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f". {script} </dev/null\necho '{_END}'\n".encode())
        try:
            async with asyncio.timeout(4 * TIMEOUT_S):
                output = (await self.process.stdout.readuntil(f"{_END}\n".encode())).decode()
        except asyncio.IncompleteReadError as ended:
            logs = "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))
            raise AssertionError(f"a command failed:\n{block}\n{ended.partial.decode()}\n{logs[-3000:]}") from None
        return output.removesuffix(f"{_END}\n")


@asynccontextmanager
async def open_shell(folder: Path, tools: Sequence[Path] = ()) -> AsyncIterator[Shell]:
    """A shell in a folder, in which `tidegate` is on the path and the ports of the page stand for free ones."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "tidegate").write_text(f'#!/bin/sh\nexec {sys.executable} -m tidegate "$@"\n')
    (programs / "tidegate").chmod(0o755)
    port, metrics_port = free_port(), free_port()
    variables = {name: value for name, value in environment().items() if name != "TIDEGATE_STATE"} | {
        "PATH": os.pathsep.join((str(programs), *map(str, tools), os.environ["PATH"])),
        "PYTHONPATH": str(ROOT / "src"),
        "TIDEGATE_PORT": str(port),
        "TIDEGATE_METRICS_PORT": str(metrics_port),
        "TIDEGATE_WORKERS": "2",
    }
    process = await asyncio.create_subprocess_exec(
        *("bash", "--norc", "-e"),
        cwd=folder,
        env=variables,
        start_new_session=True,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )
    ports = {"50051": str(port), "9464": str(metrics_port), "6379": str(free_port()), "6399": str(free_port())}
    try:
        yield Shell(folder, process, port, metrics_port, ports)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it has left in the background
        await process.wait()
