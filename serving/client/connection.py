"""One channel to a server, and the process that it belongs to."""

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

import grpc

from tidegate.client.errors import WrongOrder, WrongProcess, status_error
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

# Sessions decide when to try again, so the channel must reconnect faster. Its own backoff goes up to two minutes.
INITIAL_RECONNECT_MS = 100
RECONNECT_MS_MAX = 1000
# An answer to 65,536 rows of a model with many outputs. gRPC's default is 4 MB.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


def make_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """Makes a channel to a server, with TLS when credentials are given."""
    options = [
        # Detect within a minute that a server has died silently.
        ("grpc.keepalive_time_ms", 40_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Each client has its own TCP connection.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", INITIAL_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        # Ignore http_proxy: it is meant for other hosts. grpc_proxy is meant for gRPC.
        ("grpc.enable_http_proxy", int("grpc_proxy" in os.environ)),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


# The connections of this process. A fork marks each of them: asking `os.getpid` at each timestep takes longer.
_connections: WeakSet["Connection"] = WeakSet()


def _after_fork() -> None:
    for connection in _connections:
        connection.forked = True


os.register_at_fork(after_in_child=_after_fork)


class Connection:
    """A channel and its methods.

    Args:
        channel: the channel to use.
        timeout_s: the deadline of a unary call.
        metadata: sent once with every call. An interceptor would slow down every message.
        owned: `close` also closes the channel; False for a channel that the caller made.

    A channel does not survive a fork: its threads stay in the parent, and a call in the child waits for ever. So whatever waits
    checks the process first.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        timeout_s: float,
        metadata: Sequence[tuple[str, str]] = (),
        *,
        owned: bool = True,
    ) -> None:
        self.channel = channel
        self.stub: Any = pb_grpc.TidegateServiceStub(channel)
        if metadata:
            for name, method in vars(self.stub).items():
                setattr(self.stub, name, partial(method, metadata=tuple(metadata)))
        self.closed = False
        self._timeout_s = timeout_s
        self._owned = owned
        self._unary_calls: set[grpc.aio.Call] = set()  # in flight
        self._pid = os.getpid()
        self.forked = False
        _connections.add(self)

    def check_process(self) -> None:
        """Raises WrongProcess in a process that was forked from the one that made the channel."""
        if self.forked:
            raise WrongProcess(self._pid, os.getpid())

    def check_open(self) -> None:
        """Raises WrongProcess in a forked process, and WrongOrder when the client was closed."""
        self.check_process()
        if self.closed:
            raise WrongOrder("client: is closed; make another one")

    async def call_unary(self, method: str, request: Any, *, of_timestep: bool = False) -> Any:
        """Calls a unary method; `of_timestep` as in `status_error`.

        Raises:
            WrongOrder, WrongProcess: the client is closed, or belongs to another process.
            ClientError: the call failed.

        """
        self.check_open()
        call = getattr(self.stub, method)(request, timeout=self._timeout_s)
        self._unary_calls.add(call)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise status_error(
                error.code(), error.details(), error.trailing_metadata(), of_timestep=of_timestep
            ) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.closed or (task is not None and task.cancelling()):
                raise
            raise WrongOrder(f"client: was closed before {method} was answered") from None
        finally:
            self._unary_calls.discard(call)

    async def close(self) -> None:
        """Cancels the unary calls in flight, and closes the channel when it is owned."""
        self.closed = True
        for call in self._unary_calls:
            call.cancel()
        if self._owned:
            await self.channel.close()

    def may_be_reachable(self) -> bool:
        """Whether a call may reach the server: False while the channel is in TRANSIENT_FAILURE, and tries to connect.

        A failed call has a cost: gRPC keeps some 200 bytes of each for good, and a server may be down for weeks.
        """
        return bool(self.channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE)
