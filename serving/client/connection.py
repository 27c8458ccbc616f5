"""One channel to a server, and the process that it belongs to."""

import os
from typing import Any

import grpc

from protos.tidegate.v1 import tidegate_pb2_grpc as pb_grpc
from serving.client.errors import WrongProcess


class Connection:
    """A channel, and the methods that can be called over it.

    A channel does not survive a fork: its threads stay behind, and whatever is called in the child waits for ever. So what
    is about to wait asks first which process it is in.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub: Any = pb_grpc.TidegateServiceStub(channel)
        self._pid = os.getpid()

    @property
    def elsewhere(self) -> bool:
        """Whether this is another process than the one that made the channel."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raises WrongProcess in a process that was forked from the one that made the channel."""
        if self.elsewhere:
            raise WrongProcess(self._pid, os.getpid())

    def may_be_up(self) -> bool:
        """Whether a call may reach the server; False while the channel has failed and only tries to connect.

        A call in vain is not free: gRPC keeps some 200 bytes of each for good, and a server may be down for weeks.
        """
        return bool(self.channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE)
