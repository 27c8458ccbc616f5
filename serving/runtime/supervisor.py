"""Runs the workers: serving processes that share one port and one store.

The rules of this file:
1. The supervisor holds the port, serves one /metrics for all, and decides which models all workers serve. It touches
   no stream, and no graph: those are tried in another process. So little can make it fail.
2. A worker that ends is restarted, after a pause that grows while it keeps ending soon. Its streams are in the store,
   and clients open them again at any worker.
3. At the start, one worker that reports why it cannot start fails the whole start. So does a worker that ends
   START_TRIES times without a report, perhaps for lack of memory. Later, both are handled as in rule 2.
4. On SIGTERM all workers drain at the same time. A worker that takes much longer than `drain_after_s` is killed, and
   the exit code shows it. A second signal ends everything at once.
5. If the supervisor dies, its workers drain: see `runtime.worker_process`.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from tidegate.runtime.channel import Channel, Message
from tidegate.runtime.exposition import Exposition
from tidegate.runtime.host import with_port
from tidegate.runtime.lifecycle import StartFailed, StopFailed, print_ready, ready_line
from tidegate.runtime.metrics_server import MetricsServer
from tidegate.runtime.model_catalog import ModelCatalog
from tidegate.runtime.model_messages import RemoteHost, answer_worker
from tidegate.runtime.reserved_port import ReservedPort
from tidegate.runtime.worker_process import WorkerProcess

log = logging.getLogger("tidegate.supervisor")

# A worker that died once is needed and restarted almost at once. One that keeps dying must not keep a core busy, nor
# fill the log.
PAUSE_SECONDS = 0.1
PAUSE_SECONDS_MAX = 30.0
# A worker that has run for so long did not fail because of its start.
LIVED_SECONDS = 60.0
# How often a worker may end without a report before all are ready. A random cause does not strike three times in a row.
START_TRIES = 3
# The time that a worker may need after draining: it cancels calls, stores the rest, and exits.
DRAIN_MARGIN_SECONDS = 5.0


class Supervisor:
    """Keeps the workers running until it is told to stop.

    Args:
        command: the command that starts a worker.
        settings: the settings of each worker, by name; the chosen port is put into `config`, under `port`.
        workers: the number of workers.
        host: the address of gRPC.
        port: the port of gRPC; 0 picks a free one.
        metrics_host: the address of /metrics.
        metrics_port: the port of /metrics; 0 picks a free one.
        drain_after_s: how long a worker may drain, in seconds.
        catalog: decides which models are served; None for workers that ask for none.

    """

    def __init__(  # noqa: PLR0913 - what a server needs to know, each by its name
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
        catalog: ModelCatalog | None = None,
    ) -> None:
        self._command = command
        self._settings = settings
        self._worker_count = workers
        self._host = host
        self._port = port
        self._metrics_host = metrics_host
        self._metrics_port = metrics_port
        self._drain_after_s = drain_after_s
        self._workers: list[WorkerProcess] = []
        self._ready = False
        self._stop_requested = asyncio.Event()
        self._failures: list[str] = []
        self._catalog = catalog
        self._models_known = asyncio.Event()
        self._background: set[asyncio.Task[object]] = set()

    def __repr__(self) -> str:
        return f"<Supervisor: {sum(worker.metrics.up for worker in self._workers)} of {self._worker_count} workers up>"

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains all workers. A second signal ends everything at once.

        Raises:
            ContractBroken: a model cannot be served.
            StartFailed: a port is taken, or a worker could not start.
            StopFailed: a worker failed while it stopped.

        No worker is left when it returns or raises.
        """
        port = ReservedPort(self._host, self._port)
        try:
            settings = {**self._settings, "config": {**self._settings["config"], "port": port.number}}
            self._workers = [
                WorkerProcess(number, self._command, settings, self._on_ready, self._answer)
                for number in range(self._worker_count)
            ]
            events = [] if self._catalog is None else [self._catalog.events]
            sources = [worker.metrics for worker in self._workers]
            exposition = Exposition(sources, _nothing, supervised=True, events=events)
            metrics_port = MetricsServer(self._metrics_host, self._metrics_port, exposition)
            self._port, self._metrics_port = port.number, metrics_port.port
            try:
                await self._run_workers()
            finally:
                metrics_port.close()
                for worker in self._workers:
                    worker.close()
        finally:
            port.close()
            if self._catalog is not None:
                await self._catalog.close()
        if self._failures:
            raise StopFailed("; ".join(self._failures))
        log.info("stopped")

    async def _run_workers(self) -> None:
        """Runs all workers until told to stop, and waits for their end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            async with asyncio.TaskGroup() as group:
                models = group.create_task(self._run_catalog(), name="models")
                running = [group.create_task(self._keep_running(worker), name=repr(worker)) for worker in self._workers]
                stopping = group.create_task(self._stop(running), name="stopping")
                await asyncio.wait(running)
                stopping.cancel()
                models.cancel()
        except ExceptionGroup as failures:  # the first failure has cancelled the others
            raise failures.exceptions[0] from None

    async def _run_catalog(self) -> None:
        """Decides what is served, until cancelled."""
        if self._catalog is not None:
            await self._catalog.start()
            self._models_known.set()
            await self._catalog.run()

    async def _answer(self, worker: WorkerProcess, request: Message) -> object:
        """The answer to a request of a worker."""
        assert self._catalog is not None
        await self._models_known.wait()
        if request["do"] != "join":
            return await answer_worker(request, self._catalog)
        assert worker.channel is not None
        host = RemoteHost(worker.channel, worker.number, self._catalog.load_s)
        try:
            await self._catalog.join(host)
        except BaseException:  # it has ended meanwhile
            self._catalog.leave(host)
            raise
        self._start(self._leave(host, worker.channel))
        return None

    async def _leave(self, host: RemoteHost, channel: Channel) -> None:
        """Waits for the end of a worker, which the catalog then tells nothing more."""
        assert self._catalog is not None
        await channel.closed.wait()
        self._catalog.leave(host)

    def _reload(self) -> None:
        """Looks at the models on SIGHUP. Before the start, that is about to happen."""
        if self._catalog is not None and self._models_known.is_set():
            log.info("SIGHUP: looking at the models; settings are not read again")
            self._start(self._catalog.change("reload"))

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        """Starts a task that ends soon, or with a worker."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _keep_running(self, worker: WorkerProcess) -> None:
        """Runs a worker and restarts it, until told to stop."""
        loop = asyncio.get_running_loop()
        pause = PAUSE_SECONDS
        tries = 0
        while not self._stop_requested.is_set():
            started = loop.time()
            try:
                code = await worker.run()
                reason = worker.refused or _described(code)
            except OSError as error:
                code, reason = 1, f"could not be started: {error.strerror}"
            if self._stop_requested.is_set():
                if code:
                    self._failures.append(f"worker {worker.number} {reason} while it was stopping; see its log")
                return
            if not self._ready:
                tries += 1
                if worker.refused or tries == START_TRIES:
                    raise StartFailed(
                        worker.refused
                        or f"worker {worker.number} {reason} before it was ready, {tries} times in a row; see its log"
                    )
            if loop.time() - started >= LIVED_SECONDS:
                pause = PAUSE_SECONDS
            log.warning("worker %d: %s; it is restarted in %g s", worker.number, reason, pause)
            await self._pause(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
            worker.metrics.restarts += 1

    async def _pause(self, seconds: float) -> None:
        """Waits, at most until told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop_requested.wait()
        except TimeoutError:
            pass

    async def _stop(self, running: Sequence[asyncio.Task[None]]) -> None:
        """Drains all workers when told to stop, and kills those that take too long."""
        await self._stop_requested.wait()
        for worker in self._workers:
            worker.drain()
        seconds = self._drain_after_s + DRAIN_MARGIN_SECONDS
        await asyncio.wait(running, timeout=seconds)
        for worker in self._workers:
            if worker.metrics.pid:
                log.error("worker %d has not ended after %g s and is killed", worker.number, seconds)
                worker.kill()

    def _on_ready(self, _: WorkerProcess) -> None:
        """A worker is ready. Prints the ready line when all are ready for the first time."""
        if not self._ready and not self._stop_requested.is_set() and all(worker.metrics.up for worker in self._workers):
            self._ready = True
            grpc = with_port(self._host, self._port)
            metrics = with_port(self._metrics_host, self._metrics_port)
            print_ready(ready_line(grpc, metrics, self._workers[0].models))
            log.info("%d workers are ready", self._worker_count)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop_requested.is_set():
            log.warning("%s again: ending at once", number.name)
            for worker in self._workers:
                worker.kill()
            logging.shutdown()
            os._exit(128 + number)
        log.info("%s: draining all workers", number.name)
        self._stop_requested.set()

    def _reap(self) -> None:
        """Reaps every process that has ended: workers, and in a container also orphans."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:  # no child is left
                return
            if not pid:
                return
            for worker in self._workers:
                if worker.metrics.pid == pid:
                    worker.reaped(status, used.ru_utime + used.ru_stime)


def _described(code: int) -> str:
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal, which has no name
            return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


def _nothing() -> None:
    """The supervisor has no gauges to look up: its workers have."""
