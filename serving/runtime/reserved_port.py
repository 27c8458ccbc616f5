"""A port that workers share, reserved by their supervisor.

A shared port hides a conflict: a second server would silently get half of the first one's connections. So the
supervisor first binds the port exclusively, which fails if anybody listens there. Then it binds the port in a way that
only the workers can share. It does not listen, so it gets no connections.
"""

import errno
import socket
from contextlib import ExitStack

from tidegate.runtime.host import addresses, make_socket, with_port
from tidegate.runtime.lifecycle import StartFailed


class ReservedPort:
    """A port of a host, reserved until it is closed.

    Args:
        host: name or address, as for gRPC.
        port: its number; 0 picks a free one.

    Raises StartFailed when the port is taken or the address is not local.
    """

    def __init__(self, host: str, port: int) -> None:
        self.number = port
        with ExitStack() as sockets:
            try:
                lacking = [self._hold(sockets, family, address) for family, address in addresses(host, port)]
                if all(lacking):
                    raise OSError(errno.EADDRNOTAVAIL, "none of its addresses is ours")  # noqa: TRY301 (one place to raise)
            except OSError as error:
                raise StartFailed(
                    f"cannot listen on {with_port(host, port)} for gRPC: the port is taken or the address is not ours"
                ) from error
            self._held = sockets.pop_all()

    def close(self) -> None:
        """Releases the port."""
        self._held.close()

    def _hold(self, sockets: ExitStack, family: socket.AddressFamily, address: str) -> bool:
        """Reserves the port at one address.

        Returns whether the system lacks that address, which may happen for one of a name's addresses.
        """
        try:
            if self.number:
                with make_socket(family) as probe:
                    # Connections of an earlier server that are still closing do not count.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((address, self.number))
            holding = sockets.enter_context(make_socket(family))
            holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                holding.bind((address, self.number))
            except OSError as error:
                # They do count for a socket with SO_REUSEPORT but without SO_REUSEADDR. SO_REUSEADDR is not set at
                # first: it would let a second supervisor in until one of our workers listens.
                if error.errno != errno.EADDRINUSE:
                    raise
                holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                holding.bind((address, self.number))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return True
            raise
        self.number = holding.getsockname()[1]
        return False
