"""Looks after the workers: serving processes that share one port and one store.

The laws of this file:
1. It holds the port, serves one /metrics for all, and touches neither streams nor models: there is little that can kill it.
2. A worker that ends is started again, after a pause that grows while it keeps ending soon. What it held is in the store, and
   clients open it again at whichever worker they come to.
3. At the beginning one worker that says why it cannot start fails the start; so does one that ends START_TRIES times without a
   word, perhaps for want of memory. Later both are endings like others.
4. SIGTERM has all workers drain at the same time; whoever needs longer than `drain_after_s` and some is killed, and the exit
   code says so. A second signal ends everything at once.
5. If it dies, its workers drain: see `runtime.child`.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from serving.runtime.child import Child
from serving.runtime.exposition import Exposition
from serving.runtime.host import with_port
from serving.runtime.life import StartFailed, StopFailed, ready_line, say_ready
from serving.runtime.metrics_port import MetricsPort
from serving.runtime.port import Port
from serving.runtime.signals import hang_up

log = logging.getLogger("tidegate.supervisor")

# A worker that died once is missed: it is started again almost at once. One that keeps dying must not keep a core busy with
# starting, nor fill the log.
PAUSE_SECONDS = 0.1
PAUSE_SECONDS_MAX = 30.0
# A worker that has lived for so long dies of something else than its start.
LIVED_SECONDS = 60.0
# How often a worker may end without a word before all are ready. What kills one by chance does not do it three times.
START_TRIES = 3
# What a worker may need beyond the time for draining: it cuts calls, stores what is left, and ends.
DRAIN_MARGIN_SECONDS = 5.0


class Supervisor:
    """Keeps workers running until it is told to stop.

    Args:
        command: what starts a worker.
        settings: what each is told, by name; the port that was picked is put into `config`, under `port`.
        workers: how many.
        host: address to listen on for gRPC.
        port: of gRPC; 0 picks a free one.
        metrics_host: address to listen on for /metrics.
        metrics_port: of /metrics; 0 picks a free one.
        drain_after_s: what a worker is given for draining, in seconds.

    """

    def __init__(
        self,
        command: Sequence[str],
        settings: Mapping[str, Any],
        *,
        workers: int,
        host: str,
        port: int,
        metrics_host: str,
        metrics_port: int,
        drain_after_s: float,
    ) -> None:
        self._command = command
        self._settings = settings
        self._workers = workers
        self._host = host
        self._port = port
        self._metrics_host = metrics_host
        self._metrics_port = metrics_port
        self._drain_after_s = drain_after_s
        self._children: list[Child] = []
        self._ready = False
        self._asked = asyncio.Event()
        self._wrong: list[str] = []

    def __repr__(self) -> str:
        return f"<Supervisor: {sum(child.source.up for child in self._children)} of {self._workers} workers up>"

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then has all workers drain. A second signal ends everything at once.

        Raises:
            StartFailed: a port cannot be had, or a worker could not start.
            StopFailed: a worker did not end well.

        No worker is left when it returns or raises.
        """
        port = Port(self._host, self._port)
        try:
            settings = {**self._settings, "config": {**self._settings["config"], "port": port.number}}
            self._children = [Child(number, self._command, settings, self._on_ready) for number in range(self._workers)]
            exposition = Exposition([child.source for child in self._children], _nothing, supervised=True)
            metrics_port = MetricsPort(self._metrics_host, self._metrics_port, exposition)
            self._port, self._metrics_port = port.number, metrics_port.port
            try:
                await self._keep_all()
            finally:
                metrics_port.close()
                for child in self._children:
                    child.close()
        finally:
            port.close()
        if self._wrong:
            raise StopFailed("; ".join(self._wrong))
        log.info("stopped")

    async def _keep_all(self) -> None:
        """Keeps all workers running until told to stop, and until they have ended."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        try:
            async with asyncio.TaskGroup() as group:
                keeping = [group.create_task(self._keep(child), name=repr(child)) for child in self._children]
                stopping = group.create_task(self._stop(keeping), name="stopping")
                await asyncio.wait(keeping)
                stopping.cancel()
        except ExceptionGroup as failures:  # the first ended the others
            raise failures.exceptions[0] from None

    async def _keep(self, child: Child) -> None:
        """Has a worker live, again and again, until told to stop."""
        loop = asyncio.get_running_loop()
        pause = PAUSE_SECONDS
        tries = 0
        while not self._asked.is_set():
            begun = loop.time()
            try:
                code = await child.live()
                how = child.refused or _described(code)
            except OSError as error:
                code, how = 1, f"could not be started: {error.strerror}"
            if self._asked.is_set():
                if code:
                    self._wrong.append(f"worker {child.number} {how} while it was to stop; see its log")
                return
            if not self._ready:
                tries += 1
                if child.refused or tries == START_TRIES:
                    raise StartFailed(
                        child.refused
                        or f"worker {child.number} {how} before it was ready, {tries} times in a row; see its log"
                    )
            if loop.time() - begun >= LIVED_SECONDS:
                pause = PAUSE_SECONDS
            log.warning("worker %d: %s; it is started again in %g s", child.number, how, pause)
            await self._pause(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
            child.source.restarts += 1

    async def _pause(self, seconds: float) -> None:
        """Waits, or less when told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            pass

    async def _stop(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        """When told to, has all workers drain; kills those that take too long."""
        await self._asked.wait()
        for child in self._children:
            child.drain()
        seconds = self._drain_after_s + DRAIN_MARGIN_SECONDS
        await asyncio.wait(keeping, timeout=seconds)
        for child in self._children:
            if child.source.pid:
                log.error("worker %d has not ended after %g s and is killed", child.number, seconds)
                child.kill()

    def _on_ready(self) -> None:
        """Says so when the last worker has become ready for the first time."""
        if not self._ready and not self._asked.is_set() and all(child.source.up for child in self._children):
            self._ready = True
            grpc = with_port(self._host, self._port)
            metrics = with_port(self._metrics_host, self._metrics_port)
            say_ready(ready_line(grpc, metrics, self._children[0].models))
            log.info("%d workers are ready", self._workers)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._asked.is_set():
            log.warning("%s again: ending at once", number.name)
            for child in self._children:
                child.kill()
            logging.shutdown()
            os._exit(128 + number)
        log.info("%s: all workers are to drain", number.name)
        self._asked.set()

    def _reap(self) -> None:
        """Sees every process to its end that has ended: workers, and in a container whatever else was left behind."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:  # there is none left
                return
            if not pid:
                return
            for child in self._children:
                if child.source.pid == pid:
                    child.reaped(status, used.ru_utime + used.ru_stime)


def _described(code: int) -> str:
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal, which has no name
            return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


def _nothing() -> None:
    """A supervisor has nothing to look up: its workers do."""
