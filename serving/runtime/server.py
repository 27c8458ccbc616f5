"""The life of a server: wire the parts, start, serve, drain, stop."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.core.errors import StoreUnavailable
from serving.rpc import native, reflection
from serving.rpc.unreadable import Unreadable
from serving.runtime.administration import Administration
from serving.runtime.board import Board
from serving.runtime.config import ServerConfig
from serving.runtime.doorkeeper import Doorkeeper
from serving.runtime.exposition import Exposition, Source
from serving.runtime.holdings import Holdings
from serving.runtime.host import is_unix, why_not_unix, with_port
from serving.runtime.keeper import Keeper
from serving.runtime.life import StartFailed, StopFailed, ready_line
from serving.runtime.memory import Need, memory_limit
from serving.runtime.metrics import Metrics
from serving.runtime.metrics_port import MetricsPort
from serving.runtime.pace import Pace
from serving.runtime.process import measure
from serving.runtime.repository import Limits, Repository, load_repository
from serving.runtime.signals import hang_up
from serving.store import Store, store_at

log = logging.getLogger("tidegate.server")

# How often the lag of the store is looked at, in seconds; who waits for a store that hangs gives up so much too late.
LAG_WATCH_SECONDS = 0.25
# New objects at which the collector looks for those that only hold each other. Of a timestep under way there are some twenty:
# at Python's 700 those of a hundred streams were gone through again and again, though each goes by itself when it is answered.
NEW_OBJECTS = 10_000
# Of the time for stopping, what is kept for telling the clients to move when the store does not take their streams: half of it at
# the most.
SECONDS_TO_TELL = 1.0
# What storing may take at least, in seconds, when calls have used up the time for stopping.
SECONDS_TO_STORE = 2.0
SERVICE = pb.DESCRIPTOR.services_by_name["TidegateService"].full_name


# How often a worker looks up what its supervisor is to tell Prometheus, in seconds; what is counted is there at once.
REFRESH_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is among others: it shares their port, and its numbers are read by another process.

    `board` is the descriptor of an empty file for them, `last_board` of what the worker before it in this place counted.
    The `first` one says what is to be said once for all.
    """

    board: int
    last_board: int | None
    first: bool


class Server:
    """One serving process.

    `start` leaves it serving, `stop` drains it, `run` is both with signals between.

    Args:
        config: the settings.
        place: None for a server that is alone: it owns its port, and serves its metrics itself.

    """

    def __init__(self, config: ServerConfig, place: Place | None = None) -> None:
        self.config = config
        self.place = place
        self.grpc_port = 0
        self.metrics_port = 0
        self.repository: Repository
        self.holdings: Holdings
        self.keeper: Keeper
        self.administration: Administration
        self._health = health.aio.HealthServicer()
        self._doorkeeper = Doorkeeper()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready_line(self) -> str:
        """What is printed when the server is ready; other programs wait for it and read the ports from it."""
        models = [served.spec.title for served in self.repository]
        grpc = with_port(self.config.host, self.grpc_port)
        return ready_line(grpc, with_port(self.config.metrics_address, self.metrics_port), models)

    async def start(self) -> None:
        """Takes the ports, opens the store, loads the models and warms them up; afterwards health says SERVING.

        Raises:
            ContractBroken: a model cannot be served.
            StartFailed: a port cannot be had, or the store cannot be used.

        Nothing stays open when it raises.
        """
        async with AsyncExitStack() as resources:
            await self._start(resources)
            self._resources = resources.pop_all()
        # What start-up made stays for good. Left to the collector, its fifty thousand objects are gone through about once a
        # second under load, and every stream waits for 19 ms; frozen, the longest such pause is 1.3 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(NEW_OBJECTS)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        log.info("serving %r", self.repository)

    async def _start(self, resources: AsyncExitStack) -> None:
        config = self.config
        metrics = Metrics({name: version(name) for name in ("tidegate", "onnxruntime", "grpcio")})
        # The overall status starts as SERVING in this servicer; nothing is served before the end of `start`.
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server = self._make_server()
        resources.push_async_callback(self._server.stop, None)
        source = Source("0")
        source.pid = os.getpid()
        if self.place is None:
            # Ports first: a mistake with one is said at once, not after the models were loaded.
            metrics_port = self._start_metrics(metrics, source)
            resources.callback(metrics_port.close)
            self.metrics_port = metrics_port.port
            self._listen()
        store = await self._open_store()
        resources.push_async_callback(store.close)
        limits = Limits(config.live_max, config.answers_remembered, config.batch_max, config.queue_max)
        self.repository = load_repository(config.models, limits, metrics)
        self._warn_of_memory()
        self.holdings = Holdings(
            self.repository,
            store,
            metrics,
            streams_max=config.streams_max,
            forget_after_s=config.forget_after,
            pace=Pace(config.checkpoint_every, config.park_after, config.ready_lag, config.lag_max),
        )
        self.keeper = Keeper(self.repository, store, metrics, self.holdings)
        self.administration = Administration(self.repository, store, self.holdings)
        self._native = native.Native(
            self.keeper,
            self.administration,
            live_max=config.live_max_of_a_peer,
            message_bytes_max=config.message_bytes_max,
        )
        native.add_to_server(self._native, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.add_to_server((SERVICE, health.SERVICE_NAME), self._server)
        if self.place is None:
            source.board, source.up = metrics.lay_out(), True
        else:
            last = self.place.last_board
            metrics.lay_out(self.place.board, None if last is None else Board.read(last))
            # Ports last: a connection that comes to this worker would wait until its models are loaded; others are ready.
            self._listen()
        await self._server.start()
        self._doorkeeper.begin()
        self._tasks = [
            *(asyncio.create_task(served.batcher.run(), name=repr(served.batcher)) for served in self.repository),
            asyncio.create_task(self.holdings.checkpointer.run(), name="checkpointer"),
            asyncio.create_task(self.holdings.sweeper.run(), name="sweeper"),
            asyncio.create_task(self.holdings.peers.run(), name="peers"),
            asyncio.create_task(self._watch_lag(), name="lag watch"),
            asyncio.create_task(self._doorkeeper.watch(), name="descriptor watch"),
            *([] if self.place is None else [asyncio.create_task(_refresh(metrics), name="refresher")]),
        ]

    async def stop(self) -> None:
        """Drains: health turns NOT_SERVING, what is under way is answered, all state is stored, calls end UNAVAILABLE.

        A call ends once its streams are stored. When the store does not take them in time, it ends all the same.
        Raises StopFailed, when all else is done, if the store did not take all state in time.
        """
        await self._health.enter_graceful_shutdown()
        deadline = asyncio.get_running_loop().time() + self.config.drain_after
        time_to_store = self.config.drain_after - min(SECONDS_TO_TELL, self.config.drain_after / 2)
        # A task that has failed will store nothing: then there is nothing to wait for.
        self.holdings.checkpointer.give_up_in(0.0 if any(task.done() for task in self._tasks) else time_to_store)
        try:
            async with asyncio.timeout_at(deadline):
                await self._native.drain()
        except TimeoutError:
            log.warning("calls did not end within %g s and are cut", self.config.drain_after)
        # The calls have ended; their last words may still be on the way. Those that have not are cut.
        await self._server.stop(grace=1.0)
        storing = asyncio.create_task(self._store_all())
        time_left = max(deadline - asyncio.get_running_loop().time(), SECONDS_TO_STORE)
        await asyncio.wait([storing, *self._tasks], timeout=time_left, return_when=asyncio.FIRST_COMPLETED)
        unsaved = "" if storing.done() else f"the store did not take all state in time: {self.holdings.checkpointer!r}"
        storing.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(storing, *self._tasks, return_exceptions=True)
        await self._resources.aclose()
        if unsaved:
            raise StopFailed(unsaved)
        log.info("stopped")

    async def _store_all(self) -> None:
        """Waits until no call is left and every stream is in the store."""
        await self._native.drain()
        await self.keeper.close()

    async def wait(self) -> None:
        """Waits until a task that must not end has ended; raises what ended it. Never returns."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        task = done.pop()
        # Now: while the server stops, something else may go wrong because of this, and be taken for the cause.
        log.critical("%s ended, and so does the server", task.get_name(), exc_info=task.exception())
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        raise RuntimeError(f"{task.get_name()} ended") from task.exception()

    async def run(self, on_ready: Callable[[], None], asked: asyncio.Event) -> None:
        """Serves until SIGTERM, SIGINT or somebody sets `asked`, then drains. A second signal ends the process at once.

        Raises what `start` and `wait` raise.
        """
        loop = asyncio.get_running_loop()
        signals: list[signal.Signals] = []

        def on_signal(number: signal.Signals) -> None:
            if signals:
                log.warning("%s again: ending at once", number.name)
                logging.shutdown()
                os._exit(128 + number)  # a batch in a thread would hold up an exit that waits for it
            log.info("%s: draining", number.name)
            signals.append(number)
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        await self.start()
        on_ready()
        watch = asyncio.create_task(self.wait())
        asking = asyncio.create_task(asked.wait())
        try:
            await asyncio.wait([watch, asking], return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                await watch
        finally:
            watch.cancel()
            asking.cancel()
            await self.stop()

    def _make_server(self) -> grpc.aio.Server:
        return grpc.aio.server(
            interceptors=[self._doorkeeper, Unreadable()],
            options=[
                # One more is closed at once; without a descriptor it would hang, and its client with it.
                ("grpc.max_allowed_incoming_connections", self._doorkeeper.connections_max),
                # A second server on a taken port must fail, not share it silently. For workers, who are to share it, their
                # supervisor has seen that it was free, and holds it.
                ("grpc.so_reuseport", int(self.place is not None)),
                ("grpc.max_receive_message_length", self.config.message_bytes_max),
                # A call whose client does not read takes 64 KB from it, some thousand timesteps; the probe would widen that to
                # megabytes a call.
                ("grpc.http2.bdp_probe", 0),
                # Find peers that died without a word within a minute; gRPC's own default is two hours.
                ("grpc.keepalive_time_ms", 40_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                # Sensors that ping through quiet times are welcome, from every 10 s on.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )

    def _listen(self) -> None:
        address = with_port(self.config.host, self.config.port)
        if is_unix(address) and (why := why_not_unix(address)):
            raise StartFailed(f"cannot listen on {address} for gRPC: {why}")
        try:
            self.grpc_port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartFailed(
                f"cannot listen on {address} for gRPC: the port is taken or the address is not ours"
            ) from error

    def _start_metrics(self, metrics: Metrics, source: Source) -> MetricsPort:
        exposition = Exposition([source], metrics.refresh, supervised=False)
        return MetricsPort(self.config.metrics_address, self.config.metrics_port, exposition)

    def _warn_of_memory(self) -> None:
        """Says so when the live streams that are allowed do not fit into memory: the system would kill what serves them."""
        if self.place is not None and not self.place.first:
            return
        need = Need(
            rows=tuple(served.slots.row_bytes(served.slots.answers) for served in self.repository),
            live_max=self.config.live_max,
            workers=self.config.worker_count,
            base=int(measure(os.getpid()).get("process_resident_memory_bytes", 0)),
        )
        if warning := need.warning(*memory_limit()):
            log.warning("%s", warning)

    async def _open_store(self) -> Store:
        try:
            if not self.config.state:
                self.config.data_dir.mkdir(parents=True, exist_ok=True)
            store = store_at(self.config.state_address)
            await store.start()
        except OSError as error:
            raise StartFailed(f"data_dir {self.config.data_dir} cannot be made: {error.strerror}") from error
        except (StoreUnavailable, ValueError) as error:
            raise StartFailed(str(error)) from error
        log.info("streams rest in %r and survive %s", store, store.survives)
        return store

    async def _watch_lag(self) -> None:
        """Says that the server is not ready while the store is behind."""
        ready, gone = True, False
        while True:
            await asyncio.sleep(LAG_WATCH_SECONDS)
            await self.holdings.checkpointer.judge()
            if self.holdings.checkpointer.store_gone and not gone:
                gone = True
                log.error("the process is not healthy: only a restart helps")
                await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            if ready != self.holdings.checkpointer.ready:
                ready = not ready
                log.warning("%s: %r", "ready again" if ready else "not ready", self.holdings.checkpointer)
                status = health_pb2.HealthCheckResponse
                await self._health.set(SERVICE, status.SERVING if ready else status.NOT_SERVING)

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def _refresh(metrics: Metrics) -> None:
    """Looks up every so often what is not counted, until cancelled."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        metrics.refresh()
