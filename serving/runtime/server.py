"""One serving process: creates the parts, starts, serves, drains and stops."""

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

from tidegate.core.errors import StoreUnavailable
from tidegate.rpc import reflection, servicer
from tidegate.rpc.malformed_requests import MalformedRequestInterceptor
from tidegate.runtime.admin_service import AdminService
from tidegate.runtime.checkpoint_schedule import CheckpointSchedule
from tidegate.runtime.config import ServerConfig
from tidegate.runtime.connection_limit import ConnectionLimiter
from tidegate.runtime.exposition import Exposition, WorkerMetrics
from tidegate.runtime.host import is_unix, why_not_unix, with_port
from tidegate.runtime.lifecycle import StartFailed, StopFailed, ready_line
from tidegate.runtime.memory import MemoryEstimate, memory_limit
from tidegate.runtime.metrics import Metrics
from tidegate.runtime.metrics_server import MetricsServer
from tidegate.runtime.model_settings import ModelSettings
from tidegate.runtime.process import measure
from tidegate.runtime.repository import Limits, Repository, load_repository
from tidegate.runtime.shared_counters import SharedCounters
from tidegate.runtime.signals import hang_up
from tidegate.runtime.stream_registry import StreamRegistry
from tidegate.runtime.stream_service import StreamService
from tidegate.runtime.version_watch import VersionWatch
from tidegate.store import Store, make_store
from tidegate.v1 import tidegate_pb2 as pb

log = logging.getLogger("tidegate.server")

# How often the lag of the store is checked, in seconds. A caller that waits for a store that hangs may get its error so
# much later.
LAG_WATCH_SECONDS = 0.25
# The garbage collector runs after so many new objects. A timestep in flight has about twenty. With Python's default of
# 700, those of a hundred streams were examined again and again, though reference counting frees each when it is
# answered.
NEW_OBJECTS = 10_000
# The part of the time for stopping that is reserved for telling clients to move when the store does not save their
# streams: at most half of it.
SECONDS_TO_TELL = 1.0
# The least time for storing, in seconds, when calls have used up the time for stopping.
SECONDS_TO_STORE = 2.0
SERVICE = pb.DESCRIPTOR.services_by_name["TidegateService"].full_name


# How often a worker looks up its gauges for the supervisor, in seconds. Counters are always up to date.
REFRESH_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """The context of a worker with a supervisor: it shares the port, and the supervisor reads its metrics.

    `counters_fd` is the descriptor of an empty file for its metrics, `previous_counters_fd` that of the worker before
    it with this number. Only the worker with `is_first` logs what concerns all.
    """

    counters_fd: int
    previous_counters_fd: int | None
    is_first: bool


class Server:
    """One serving process.

    `start` returns when it serves, `stop` drains it, and `run` does both with signals in between.

    Args:
        config: the settings.
        context: None without a supervisor: then the server owns its port and serves its metrics itself.

    """

    def __init__(self, config: ServerConfig, context: WorkerContext | None = None) -> None:
        self.config = config
        self.context = context
        self.grpc_port = 0
        self.metrics_port = 0
        self.repository: Repository
        self.registry: StreamRegistry
        self.stream_service: StreamService
        self.admin_service: AdminService
        self._health = health.aio.HealthServicer()
        self._connection_limiter = ConnectionLimiter()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready_line(self) -> str:
        """The line that is printed when the server is ready. Other programs wait for it and read the ports from it."""
        models = [served.spec.title for served in self.repository]
        grpc = with_port(self.config.host, self.grpc_port)
        return ready_line(grpc, with_port(self.config.metrics_address, self.metrics_port), models)

    async def start(self) -> None:
        """Takes the ports, opens the store, loads the models and warms them up. Afterwards health is SERVING.

        Raises:
            ContractBroken: a model cannot be served.
            StartFailed: a port is taken, or the store cannot be used.

        Nothing stays open when it raises.
        """
        async with AsyncExitStack() as resources:
            await self._start(resources)
            self._resources = resources.pop_all()
        # The objects of the start live as long as the process. If the collector examined these fifty thousand objects
        # about once a second under load, every stream would wait for 19 ms. Frozen, the longest pause is 1.3 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(NEW_OBJECTS)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        log.info("serving %r", self.repository)

    async def _start(self, resources: AsyncExitStack) -> None:
        config = self.config
        metrics = Metrics({name: version(name) for name in ("tidegate", "onnxruntime", "grpcio")})
        # This servicer's overall status starts as SERVING. Nothing is served before the end of `start`.
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server = self._make_server()
        resources.push_async_callback(self._server.stop, None)
        source = WorkerMetrics("0")
        source.pid = os.getpid()
        if self.context is None:
            # Ports first: an error with a port is reported at once, not after the models are loaded.
            metrics_port = self._start_metrics(metrics, source)
            resources.callback(metrics_port.close)
            self.metrics_port = metrics_port.port
            self._listen()
        store = await self._open_store()
        resources.push_async_callback(store.close)
        settings = ModelSettings.model_validate({"policy": config.swap_policy, "rewarm_steps": config.rewarm_steps})
        limits = Limits(config.live_max, config.answers_remembered, config.batch_max, config.queue_max, settings)
        self.repository = load_repository(config.models, limits, metrics)
        self._warn_of_memory()
        self.registry = StreamRegistry(
            self.repository,
            store,
            metrics,
            streams_max=config.streams_max,
            forget_after_s=config.forget_after,
            schedule=CheckpointSchedule(config.checkpoint_every, config.park_after, config.ready_lag, config.lag_max),
        )
        self.stream_service = StreamService(self.repository, store, metrics, self.registry)
        self.admin_service = AdminService(self.repository, store, self.registry)
        self.version_watch = VersionWatch(config.models, self.repository, self.stream_service.mover.mark)
        await self.version_watch.start()
        self._servicer = servicer.TidegateServicer(
            self.stream_service,
            self.admin_service,
            live_max=config.live_max_of_a_peer,
            message_bytes_max=config.message_bytes_max,
        )
        servicer.add_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.add_to_server((SERVICE, health.SERVICE_NAME), self._server)
        if self.context is None:
            source.counters, source.up = metrics.create_counters(), True
        else:
            last = self.context.previous_counters_fd
            metrics.create_counters(self.context.counters_fd, None if last is None else SharedCounters.read(last))
            # Ports last: a connection to this worker would wait until its models are loaded, while other workers are
            # ready.
            self._listen()
        await self._server.start()
        self._connection_limiter.set_baseline()
        self._start_tasks(metrics)

    def _start_tasks(self, metrics: Metrics) -> None:
        """Starts the permanent tasks."""
        self._tasks = [
            *(asyncio.create_task(served.batcher.run(), name=repr(served.batcher)) for served in self.repository),
            asyncio.create_task(self.registry.checkpointer.run(), name="checkpointer"),
            asyncio.create_task(self.registry.sweeper.run(), name="sweeper"),
            asyncio.create_task(self.registry.peers.run(), name="peers"),
            asyncio.create_task(self._watch_lag(), name="lag watch"),
            asyncio.create_task(self._connection_limiter.run(), name="descriptor watch"),
            asyncio.create_task(self.version_watch.run(), name="version watch"),
            *([] if self.context is None else [asyncio.create_task(_refresh(metrics), name="refresher")]),
        ]

    async def stop(self) -> None:
        """Drains: answers pending requests, stores all state, and ends all calls UNAVAILABLE. Health is NOT_SERVING.

        A call ends once its streams are stored, or when the store does not save them in time. Raises StopFailed at the
        end if the store did not save all state in time.
        """
        await self._health.enter_graceful_shutdown()
        deadline = asyncio.get_running_loop().time() + self.config.drain_after
        time_to_store = self.config.drain_after - min(SECONDS_TO_TELL, self.config.drain_after / 2)
        # A task that has failed stores nothing: then there is nothing to wait for.
        self.registry.checkpointer.set_deadline(0.0 if any(task.done() for task in self._tasks) else time_to_store)
        try:
            async with asyncio.timeout_at(deadline):
                await self._servicer.drain()
        except TimeoutError:
            log.warning("calls did not end within %g s and are cancelled", self.config.drain_after)
        # The calls have ended, but their last messages may still be in transit. Calls that have not ended are
        # cancelled.
        await self._server.stop(grace=1.0)
        storing = asyncio.create_task(self._store_all())
        time_left = max(deadline - asyncio.get_running_loop().time(), SECONDS_TO_STORE)
        await asyncio.wait([storing, *self._tasks], timeout=time_left, return_when=asyncio.FIRST_COMPLETED)
        unsaved = "" if storing.done() else f"the store did not save all state in time: {self.registry.checkpointer!r}"
        storing.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(storing, *self._tasks, return_exceptions=True)
        await self._resources.aclose()
        if unsaved:
            raise StopFailed(unsaved)
        log.info("stopped")

    async def _store_all(self) -> None:
        """Waits until there are no calls and every stream is stored."""
        await self._servicer.drain()
        await self.stream_service.close()

    async def wait(self) -> None:
        """Waits until one of the permanent tasks has ended, and raises its error. Never returns."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        task = done.pop()
        # Log it now: while the server stops, other errors may follow and hide the cause.
        log.critical("%s ended, and so does the server", task.get_name(), exc_info=task.exception())
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        raise RuntimeError(f"{task.get_name()} ended") from task.exception()

    async def run(self, on_ready: Callable[[], None], stop_requested: asyncio.Event) -> None:
        """Serves until SIGTERM, SIGINT or until `stop_requested` is set, then drains.

        A second signal ends the process at once. Raises what `start` and `wait` raise.
        """
        loop = asyncio.get_running_loop()
        signals: list[signal.Signals] = []

        def on_signal(number: signal.Signals) -> None:
            if signals:
                log.warning("%s again: ending at once", number.name)
                logging.shutdown()
                os._exit(128 + number)  # a batch in the thread would delay an exit that waits for it
            log.info("%s: draining", number.name)
            signals.append(number)
            stop_requested.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        await self.start()
        on_ready()
        watch = asyncio.create_task(self.wait())
        asking = asyncio.create_task(stop_requested.wait())
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
            interceptors=[self._connection_limiter, MalformedRequestInterceptor()],
            options=[
                # Further connections are closed at once. Without a descriptor they would hang, and their clients with
                # them.
                ("grpc.max_allowed_incoming_connections", self._connection_limiter.connections_max),
                # A second server on a taken port must fail, not share it silently. Workers must share the port; their
                # supervisor has checked that it was free, and holds it.
                ("grpc.so_reuseport", int(self.context is not None)),
                ("grpc.max_receive_message_length", self.config.message_bytes_max),
                # A call whose client does not read buffers 64 KB, about a thousand timesteps. With the BDP probe that
                # would grow to megabytes.
                ("grpc.http2.bdp_probe", 0),
                # Find dead connections within a minute. gRPC's default is two hours.
                ("grpc.keepalive_time_ms", 40_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                # Clients may send keepalive pings without data, at most one every 10 s.
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

    def _start_metrics(self, metrics: Metrics, source: WorkerMetrics) -> MetricsServer:
        exposition = Exposition([source], metrics.refresh, supervised=False)
        return MetricsServer(self.config.metrics_address, self.config.metrics_port, exposition)

    def _warn_of_memory(self) -> None:
        """Logs a warning when the allowed live streams do not fit into memory: the system would kill the process."""
        if self.context is not None and not self.context.is_first:
            return
        need = MemoryEstimate(
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
            store = make_store(self.config.state_address)
            await store.start()
        except OSError as error:
            raise StartFailed(f"data_dir {self.config.data_dir} cannot be made: {error.strerror}") from error
        except (StoreUnavailable, ValueError) as error:
            raise StartFailed(str(error)) from error
        log.info("checkpoints are stored in %r and survive %s", store, store.survives)
        return store

    async def _watch_lag(self) -> None:
        """Sets the server not ready while the store lags, and checks the lag for the checkpointer."""
        ready, gone_reported = True, False
        while True:
            await asyncio.sleep(LAG_WATCH_SECONDS)
            await self.registry.checkpointer.check_lag()
            if self.registry.checkpointer.store_gone and not gone_reported:
                gone_reported = True
                log.error("the process is not healthy: only a restart helps")
                await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            if ready != self.registry.checkpointer.ready:
                ready = not ready
                log.warning("%s: %r", "ready again" if ready else "not ready", self.registry.checkpointer)
                status = health_pb2.HealthCheckResponse
                await self._health.set(SERVICE, status.SERVING if ready else status.NOT_SERVING)

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def _refresh(metrics: Metrics) -> None:
    """Looks up the gauges at intervals, until cancelled."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        metrics.refresh()
