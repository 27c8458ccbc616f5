"""A port that workers share, held for them by their supervisor.

Sharing hides whoever has the port already: a second server that joins in would take half of the first one's connections. So
the port is first taken for oneself alone, which fails when anybody listens there, and then held in such a way that workers,
and nobody else's processes, can listen on it. What is held listens to nothing, so no connection comes to it.
"""

import errno
import socket
from contextlib import ExitStack

from serving.runtime.host import addresses, make_socket, with_port
from serving.runtime.life import StartFailed


class Port:
    """A port of a host, held until it is closed.

    Args:
        host: name or address, as gRPC takes it.
        port: its number; 0 picks a free one.

    Raises StartFailed when it is taken or the address is not ours.

    """

    def __init__(self, host: str, port: int) -> None:
        self.number = port
        with ExitStack() as held:
            try:
                lacking = [self._hold(held, family, address) for family, address in addresses(host, port)]
                if all(lacking):
                    raise OSError(errno.EADDRNOTAVAIL, "none of its addresses is ours")  # noqa: TRY301 (one way out)
            except OSError as error:
                raise StartFailed(
                    f"cannot listen on {with_port(host, port)} for gRPC: the port is taken or the address is not ours"
                ) from error
            self._held = held.pop_all()

    def close(self) -> None:
        """Holds it no longer."""
        self._held.close()

    def _hold(self, held: ExitStack, family: socket.AddressFamily, address: str) -> bool:
        """Holds the port at one address; gives whether the system lacks that address, as it may lack one of a name's."""
        try:
            if self.number:
                with make_socket(family) as probe:
                    # What is left of the connections of a server that was here before does not count.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((address, self.number))
            holding = held.enter_context(make_socket(family))
            holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                holding.bind((address, self.number))
            except OSError as error:
                # It does count for who shares and does not say that. Saying so at once would let a second supervisor in, for
                # as long as no worker of ours listens.
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
