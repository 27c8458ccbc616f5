"""The life of a server: wire the parts, start, serve, drain, stop."""

import asyncio
import gc
import logging
import os
import signal
import threading
from contextlib import AsyncExitStack
from importlib.metadata import version
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.core.errors import StoreUnavailable
from serving.rpc import native
from serving.runtime.checkpointer import Pace
from serving.runtime.config import ServerConfig
from serving.runtime.keeper import Keeper
from serving.runtime.metrics import Metrics
from serving.runtime.repository import Limits, Repository, load_repository
from serving.store import Store, store_at

log = logging.getLogger("tidegate.server")

# How often the lag of the store is looked at, in seconds.
LAG_WATCH_SECONDS = 0.25
# New objects at which the collector looks for those that only hold each other. Of a timestep under way there are some twenty:
# at Python's 700 those of a hundred streams were gone through again and again, though each goes by itself when it is answered.
NEW_OBJECTS = 10_000
# What storing may take at least, in seconds, when calls have used up the time for stopping.
SECONDS_TO_STORE = 2.0
SERVICE = pb.DESCRIPTOR.services_by_name["Tidegate"].full_name


class StartFailed(Exception):
    """The server could not start: a port is taken. Models that cannot be served raise ContractBroken."""


class StopFailed(Exception):
    """The server stopped with state that is not stored. Clients still have the timesteps, and will send them again."""


class Server:
    """One serving process.

    `start` leaves it serving, `stop` drains it, `run` is both with signals between.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.grpc_port = 0
        self.metrics_port = 0
        self.repository: Repository
        self.keeper: Keeper
        self._health = health.aio.HealthServicer()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready_line(self) -> str:
        """What is printed when the server is ready; other programs wait for it and read the ports from it."""
        host = self.config.host
        models = ",".join(served.spec.title for served in self.repository)
        return f"ready: grpc={host}:{self.grpc_port} metrics=http://{host}:{self.metrics_port}/metrics models={models}"

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
        # Ports first: a mistake with one is said at once, not after the models were loaded.
        httpd, thread = self._start_metrics(metrics)
        resources.callback(thread.join)
        resources.callback(httpd.server_close)
        resources.callback(httpd.shutdown)
        self.metrics_port = httpd.server_port
        self._server = self._listen()
        resources.push_async_callback(self._server.stop, None)
        store = await self._open_store()
        resources.push_async_callback(store.close)
        limits = Limits(config.live_max, config.answers_remembered, config.batch_max, config.queue_max)
        self.repository = load_repository(config.models, limits, metrics)
        self.keeper = Keeper(
            self.repository,
            store,
            metrics,
            streams_max=config.streams_max,
            forget_after_s=config.forget_after,
            pace=Pace(config.checkpoint_every, config.park_after, config.ready_lag, config.lag_max),
        )
        self._native = native.Native(self.keeper)
        native.add_to_server(self._native, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._server.start()
        self._tasks = [
            *(asyncio.create_task(served.batcher.run(), name=repr(served.batcher)) for served in self.repository),
            asyncio.create_task(self.keeper.checkpointer.run(), name="checkpointer"),
            asyncio.create_task(self.keeper.sweep(), name="sweeper"),
            asyncio.create_task(self._watch_lag(), name="lag watch"),
        ]

    async def stop(self) -> None:
        """Drains: health turns NOT_SERVING, what is under way is answered, calls end UNAVAILABLE, all state is stored.

        Raises StopFailed, when all else is done, if the store did not take all state in time.
        """
        await self._health.enter_graceful_shutdown()
        deadline = asyncio.get_running_loop().time() + self.config.drain_after
        try:
            async with asyncio.timeout_at(deadline):
                await self._native.drain()
        except TimeoutError:
            log.warning("calls did not end within %g s and are cut", self.config.drain_after)
        # The calls have ended; their last words may still be on the way. Those that have not are cut.
        await self._server.stop(grace=1.0)
        storing = asyncio.create_task(self._store_all())
        time_left = max(deadline - asyncio.get_running_loop().time(), SECONDS_TO_STORE)
        # A task that has failed will store nothing: then there is nothing to wait for.
        await asyncio.wait([storing, *self._tasks], timeout=time_left, return_when=asyncio.FIRST_COMPLETED)
        unsaved = "" if storing.done() else f"the store did not take all state in time: {self.keeper.checkpointer!r}"
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
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        raise RuntimeError(f"{task.get_name()} ended") from task.exception()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once.

        Raises what `start` and `wait` raise.
        """
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()

        def on_signal(number: signal.Signals) -> None:
            if asked.is_set():
                log.warning("%s again: ending at once", number.name)
                logging.shutdown()
                os._exit(128 + number)  # a batch in a thread would hold up an exit that waits for it
            log.info("%s: draining", number.name)
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        await self.start()
        print(self.ready_line, flush=True)  # noqa: T201 - the one line that other programs wait for
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

    def _listen(self) -> grpc.aio.Server:
        config = self.config
        server = grpc.aio.server(
            options=[
                # A second server on a taken port must fail, not share it silently.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", config.message_bytes_max),
                # Find peers that died without a word within a minute; gRPC's own default is two hours.
                ("grpc.keepalive_time_ms", 40_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                # Sensors that ping through quiet times are welcome, from every 10 s on.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        address = f"{config.host}:{config.port}"
        try:
            self.grpc_port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartFailed(
                f"cannot listen on {address} for gRPC: the port is taken or the address is not ours"
            ) from error
        return server

    def _start_metrics(self, metrics: Metrics) -> tuple[WSGIServer, threading.Thread]:
        registry = CollectorRegistry()
        registry.register(metrics)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        try:
            return start_http_server(self.config.metrics_port, self.config.host, registry)
        except OSError as error:
            address = f"{self.config.host}:{self.config.metrics_port}"
            raise StartFailed(f"cannot listen on {address} for metrics: {error.strerror}") from error

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
        ready = True
        while True:
            await asyncio.sleep(LAG_WATCH_SECONDS)
            self.keeper.checkpointer.judge()
            if ready != self.keeper.checkpointer.ready:
                ready = not ready
                log.warning("%s: %r", "ready again" if ready else "not ready", self.keeper.checkpointer)
                status = health_pb2.HealthCheckResponse
                await self._health.set(SERVICE, status.SERVING if ready else status.NOT_SERVING)

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)
