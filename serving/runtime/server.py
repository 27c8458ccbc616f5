"""One serving process: creates the parts, starts, serves, drains and stops."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version

from grpc_health.v1 import health, health_pb2_grpc

from tidegate.core.errors import ContractBroken, StoreUnavailable
from tidegate.rpc import reflection, servicer
from tidegate.rpc.kserve import messages as kserve_messages
from tidegate.rpc.kserve import servicer as kserve
from tidegate.rpc.kserve.backend import ServingLimits
from tidegate.rpc.malformed_requests import MalformedRequestInterceptor
from tidegate.rpc.open_calls import OpenCalls
from tidegate.runtime.access import Access
from tidegate.runtime.admin_service import AdminService
from tidegate.runtime.checkpoint_schedule import CheckpointSchedule
from tidegate.runtime.config import ServerConfig
from tidegate.runtime.connection_limit import ConnectionLimiter
from tidegate.runtime.drift_watch import watch_drift
from tidegate.runtime.exposition import Exposition, WorkerMetrics
from tidegate.runtime.grpc_server import listen, make_grpc_server
from tidegate.runtime.health_status import HealthStatus
from tidegate.runtime.host import with_port
from tidegate.runtime.inference_status import InferenceStatus
from tidegate.runtime.lifecycle import StartFailed, StopFailed, end_at_once, ready_line
from tidegate.runtime.make_catalog import make_catalog
from tidegate.runtime.memory import MemoryEstimate, memory_limit
from tidegate.runtime.metrics import Metrics, refresh_regularly
from tidegate.runtime.metrics_server import MetricsServer
from tidegate.runtime.model_catalog import ModelCatalog
from tidegate.runtime.model_checker import ModelChecker
from tidegate.runtime.model_host import ModelHost
from tidegate.runtime.model_messages import ModelControl
from tidegate.runtime.permanent_tasks import PermanentTasks
from tidegate.runtime.process import measure
from tidegate.runtime.repository import Limits, Repository, ServedModel
from tidegate.runtime.run_watch import STUCK_SECONDS, RunWatch
from tidegate.runtime.spans import SPANS
from tidegate.runtime.stream_registry import StreamRegistry
from tidegate.runtime.stream_service import StreamService
from tidegate.runtime.version_loader import VersionLoader
from tidegate.runtime.version_service import VersionService
from tidegate.runtime.version_set import ModelRefused, VersionSet
from tidegate.runtime.version_watch import VersionWatch
from tidegate.runtime.worker_context import WorkerContext
from tidegate.store import Store, make_store
from tidegate.v1 import tidegate_pb2 as pb

log = logging.getLogger("tidegate.server")

# How often the lag of the store is checked, in seconds. A caller that waits for a store that hangs may get its error so
# much later.
LAG_WATCH_SECONDS = 0.25
# How often the token file is looked at, in seconds. Whoever withdraws a token waits so long for its calls to end.
TOKEN_WATCH_SECONDS = 1.0
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


class Server:
    """One serving process.

    `start` returns when it serves, `stop` drains it, and `run` does both with signals in between.

    Args:
        config: the settings.
        context: None without a supervisor: then the server owns its port, serves its metrics and decides what is served
            itself.
        make_checker: starts a process that tries models.

    """

    def __init__(
        self,
        config: ServerConfig,
        context: WorkerContext | None = None,
        make_checker: Callable[[], ModelChecker] = ModelChecker,
    ) -> None:
        self.config = config
        self.context = context
        self.grpc_port = 0
        self.metrics_port = 0
        self.hangs = ""
        self.repository: Repository
        self.host: ModelHost
        self.registry: StreamRegistry
        self.stream_service: StreamService
        self.admin_service: AdminService
        self.metrics = Metrics({name: version(name) for name in ("tidegate", "onnxruntime", "grpcio")})
        self.on_models: Callable[[], None] = lambda: None  # called when the models or their metrics have changed
        self._make_checker = make_checker
        self._health = HealthStatus(SERVICE)
        self._connection_limiter = ConnectionLimiter()
        self._calls = OpenCalls(config.live_max_of_a_peer)
        self._tasks = PermanentTasks()
        self._serving = False
        self._on_stuck: Callable[[str], None] = log.critical  # set by `run`: tests must not end with a server

    @property
    def titles(self) -> list[str]:
        """The models that are served."""
        return [served.spec.title for served in self.repository.shown]

    @property
    def ready_line(self) -> str:
        """The line that is printed when the server is ready. Other programs wait for it and read the ports from it."""
        grpc = with_port(self.config.host, self.grpc_port)
        return ready_line(grpc, with_port(self.config.metrics_address, self.metrics_port), self.titles)

    async def start(self) -> None:
        """Takes the ports, tries the models, opens the store, loads the models and warms them up. Afterwards health is SERVING.

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
        await self._health.tell(serving=True)
        self._serving = True
        log.info("serving %r", self.repository)

    async def _start(self, resources: AsyncExitStack) -> None:
        config, metrics = self.config, self.metrics
        SPANS.start(config.otlp_endpoint)
        self._access = Access(config.tokens_path, metrics.count_refusal)
        # This servicer's overall status starts as SERVING. Nothing is served before the end of `start`.
        await self._health.tell(serving=False)
        self._server = make_grpc_server(
            [self._connection_limiter, MalformedRequestInterceptor(), *SPANS.interceptors()],
            connections_max=self._connection_limiter.connections_max,
            message_bytes_max=config.message_bytes_max,
            shares_port=self.context is not None,
        )
        resources.push_async_callback(self._server.stop, None)
        source = WorkerMetrics("0")
        source.pid = os.getpid()
        catalog: ModelCatalog | None = None
        if self.context is None:
            catalog = make_catalog(config, config.data_dir, self._make_checker)
            resources.push_async_callback(catalog.close)
            # Ports first: an error with a port is reported at once, not after the models are loaded.
            metrics_port = self._start_metrics(metrics, source, catalog)
            resources.callback(metrics_port.close)
            self.metrics_port = metrics_port.port
            self._listen()
        if self.context is None:
            metrics.create_counters()
        else:
            metrics.create_counters(self.context.counters_fd, self.context.previous_counters)
        self.control: ModelControl
        if catalog is not None:
            await catalog.start()
            self.control, versions = catalog, catalog.versions
        else:
            assert self.context is not None
            self.control = self.context.control
            versions = await self.control.versions()
        # Not before the models are found: a start in the wrong folder leaves no file there.
        store = await self._open_store()
        resources.push_async_callback(store.close)
        await self._load_models(resources, versions)
        self._warn_of_memory()
        self._make_services(store)
        await self.version_watch.start(self.stream_service.mover)
        # Before the first call: it may ask for a version that every process is to load.
        if catalog is not None:
            await catalog.join(self.host)
            source.counters, source.up = metrics.counters, True
        elif self.context is not None:
            await self.context.control.join()
            # Ports last: a connection to this worker would wait until its models are loaded, while other workers are
            # ready.
            self._listen()
        await self._server.start()
        self._connection_limiter.set_baseline()
        self._start_tasks()
        if catalog is not None:
            self._tasks.start(catalog.run(), "model catalog")

    async def _load_models(self, resources: AsyncExitStack, versions: VersionSet) -> None:
        """Loads what is served, as many at a time as there are cores."""
        config = self.config
        self.repository = Repository()
        self._loader = VersionLoader(self.repository, self.control)
        defaults = config.swap_policy, config.rewarm_steps
        self.version_watch = VersionWatch(config.models, self.repository, self._loader, *defaults)
        bounds = config.live_max, config.answers_remembered, config.batch_max, config.queue_max
        limits = Limits(*bounds, self.version_watch.settings_of)
        self.host = ModelHost(self.repository, self.metrics, limits, self._start_batcher, lambda: self.on_models())  # noqa: PLW0108 - it is set later
        # If the start fails, nothing is left behind.
        resources.push_async_callback(self._tasks.cancel, STUCK_SECONDS)
        try:
            await self.host.apply(versions)
        except ModelRefused as error:
            raise ContractBroken("a model that was tried cannot be loaded", str(error)) from error
        self._watch = RunWatch(
            lambda: [served.batcher for served in self.repository], config.step_timeout, self._on_stuck
        )
        self._watch.start()
        resources.callback(self._watch.stop)

    def _make_services(self, store: Store) -> None:
        """Creates what answers calls."""
        config = self.config
        self.registry = StreamRegistry(
            self.repository,
            store,
            self.metrics,
            limits_of=self._access.limits_of,
            streams_max=config.streams_max,
            forget_after_s=config.forget_after,
            schedule=CheckpointSchedule(config.checkpoint_every, config.park_after, config.ready_lag, config.lag_max),
        )
        self.host.registry = self.registry
        self.metrics.ready = lambda: self._serving and self.registry.checkpointer.ready
        self.stream_service = StreamService(self.repository, self._loader, store, self.metrics, self.registry)
        self.admin_service = AdminService(self.repository, self._loader, store, self.registry, self.control)
        self._servicer = servicer.TidegateServicer(
            self.stream_service,
            self.admin_service,
            self._access,
            VersionService(config.models, self.repository, self._loader, store, self.version_watch),
            self._calls,
            message_bytes_max=config.message_bytes_max,
        )
        servicer.add_to_server(self._servicer, self._server)
        kserve.add_to_server(self._make_kserve_servicer(), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        services = (SERVICE, kserve_messages.SERVICE_NAME, health.SERVICE_NAME)
        reflection.add_to_server(services, self._server, [kserve_messages.POOL])

    def _start_tasks(self) -> None:
        """Starts what runs for as long as the server serves, beside the batchers."""
        tasks = self._tasks
        tasks.start(self.registry.checkpointer.run(), "checkpointer")
        tasks.start(self.registry.sweeper.run(), "sweeper")
        tasks.start(self.registry.peers.run(), "peers")
        tasks.start(self._watch_lag(), "lag watch")
        tasks.start(self._watch_tokens(), "token watch")
        tasks.start(self._health.watch_models(self._models_health), "model watch")
        tasks.start(self.host.run(), "model host")
        tasks.start(watch_drift(self.repository), "drift watch")
        tasks.start(self.version_watch.run(), "version watch")
        tasks.start(self._connection_limiter.run(), "descriptor watch")
        if self.context is not None:
            tasks.start(refresh_regularly(self.metrics), "refresher")

    def _start_batcher(self, served: ServedModel) -> Callable[[], None]:
        """Runs the batcher of a model. Returns what ends it."""
        task = self._tasks.start(served.batcher.run(), repr(served.batcher))
        return partial(self._tasks.end, task)

    async def stop(self) -> None:
        """Drains: answers pending requests, stores all state, and ends all calls UNAVAILABLE. Health is NOT_SERVING.

        A call ends once its streams are stored, or when the store does not save them in time. Raises StopFailed at the
        end if the store did not save all state in time.
        """
        self._serving = False
        await self._health.enter_graceful_shutdown()
        deadline = asyncio.get_running_loop().time() + self.config.drain_after
        time_to_store = self.config.drain_after - min(SECONDS_TO_TELL, self.config.drain_after / 2)
        # A task that has failed stores nothing: then there is nothing to wait for.
        self.registry.checkpointer.set_deadline(0.0 if self._tasks.failed else time_to_store)
        try:
            async with asyncio.timeout_at(deadline):
                await self._calls.drain()
        except TimeoutError:
            log.warning("calls did not end within %g s and are cancelled", self.config.drain_after)
        # The calls have ended, but their last messages may still be in transit. Calls that have not ended are
        # cancelled.
        await self._server.stop(grace=1.0)
        self._watch.end_all()
        storing = asyncio.create_task(self._store_all())
        failed = asyncio.create_task(self._tasks.first_failed())
        time_left = max(deadline - asyncio.get_running_loop().time(), SECONDS_TO_STORE)
        await asyncio.wait([storing, failed], timeout=time_left, return_when=asyncio.FIRST_COMPLETED)
        unsaved = "" if storing.done() else f"the store did not save all state in time: {self.registry.checkpointer!r}"
        for task in (storing, failed):
            task.cancel()
        await asyncio.gather(storing, failed, return_exceptions=True)
        hanging = await self._tasks.cancel(STUCK_SECONDS)
        await self._resources.aclose()
        if hanging:
            self.hangs = f"a run does not end: {', '.join(task.get_name() for task in hanging)}"
            raise StopFailed(self.hangs)
        if unsaved:
            raise StopFailed(unsaved)
        log.info("stopped")

    async def _store_all(self) -> None:
        """Waits until there are no calls and every stream is stored."""
        await self._calls.drain()
        await self.stream_service.close()

    async def wait(self) -> None:
        """Waits until one of the permanent tasks has ended, and raises its error. Never returns."""
        task = await self._tasks.first_failed()
        # Log it now: while the server stops, other errors may follow and hide the cause.
        log.critical("%s ended, and so does the server", task.get_name(), exc_info=task.exception())
        await self._health.tell(serving=False)
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
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._on_stuck = end_at_once
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
            try:
                with SPANS.span("drain", calls=len(self._calls), streams=len(self.registry.streams)):
                    await self.stop()
            finally:
                await SPANS.stop()
                if self.hangs:  # Python would wait for the thread
                    end_at_once(self.hangs)

    def _reload(self) -> None:
        """Looks at the models on SIGHUP. Before the start, that is about to happen."""
        if not hasattr(self, "control"):
            return
        log.info("SIGHUP: looking at the models; settings are not read again")
        self._reloading = asyncio.create_task(self.control.change("reload", "", ""))

    def _make_kserve_servicer(self) -> kserve.InferenceServicer:
        config = self.config
        limits = ServingLimits(config.batch_max, config.live_max, config.forget_after, self.context is None)
        status = InferenceStatus(self.repository, self.registry)
        return kserve.InferenceServicer(
            self.stream_service, self.admin_service, status, self._access, self._calls, limits
        )

    def _listen(self) -> None:
        address = with_port(self.config.host, self.config.port)
        if self.config.exposed and (self.context is None or self.context.is_first):
            log.warning("%s has no TLS: whoever reaches it can read and change every stream; see --tls-cert", address)
        self.grpc_port = listen(self._server, address, self.config.tls_files)

    def _start_metrics(self, metrics: Metrics, source: WorkerMetrics, catalog: ModelCatalog) -> MetricsServer:
        exposition = Exposition([source], metrics.refresh, supervised=False, events=[catalog.events])
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
                await self._health.tell_gone()
            if ready != self.registry.checkpointer.ready:
                ready = not ready
                log.warning("%s: %r", "ready again" if ready else "not ready", self.registry.checkpointer)
                await self._health.tell_ready(ready=ready)

    async def _watch_tokens(self) -> None:
        """Reads the token file again when it has changed, and ends the calls whose token no longer gets in."""
        while True:
            await asyncio.sleep(TOKEN_WATCH_SECONDS)
            if self._access.reload():
                self._calls.end_withdrawn(self._access.is_valid)

    def _models_health(self) -> dict[str, bool]:
        """Whether each model serves: not while a run of it takes too long."""
        return {served.spec.title: not self._watch.is_late(served.batcher) for served in self.repository.shown}
