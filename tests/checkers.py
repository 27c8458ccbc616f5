"""Tries models in processes that are forked from one that has loaded the libraries: a test does not wait for imports.

What runs there is what a server runs, `tidegate.runtime.model_check`.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from tests.root import ROOT
from tidegate.runtime import model_check
from tidegate.runtime.model_checker import ModelChecker


class ForkedChecker(ModelChecker):
    """A process that tries models, forked."""

    @staticmethod
    def _start(server: socket.socket) -> Callable[[], object]:
        _fork(server)
        return lambda: None


_parent: list[socket.socket] = []
_lock = threading.Lock()


def _fork(server: socket.socket) -> None:
    with _lock:
        if not _parent:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, "-m", "tests.checkers", str(theirs.fileno())]
                process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd=ROOT)
            _parent.append(ours)
            atexit.register(lambda: (ours.close(), process.wait()))
        socket.send_fds(_parent[0], [b"fork"], [server.fileno()])
        assert _parent[0].recv(10) == b"forked"  # it has the socket


def main(connection: socket.socket) -> None:
    """Forks for each socket that comes, until the tests end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, files, _, _ = socket.recv_fds(connection, 10, 1)
        if not data:
            return
        if os.fork() == 0:
            connection.close()
            model_check.main(socket.socket(fileno=files[0]))
            os._exit(0)
        os.close(files[0])
        connection.send(b"forked")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
