"""Python programs that use gRPC, forked from a process that has loaded it: they start in a tenth of the time.

`forked(PROGRAM, ARGUMENTS...)` is the command of a small process that hands its standard files to the loaded one (`python -m tests.forked_programs`),
which forks; it ends as the program does, and takes the program with it when it is killed. `tests.forked` does this for `tidegate`.
"""

import atexit
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from tests.root import ROOT

LOADED = ("grpc.aio", "google.rpc.error_details_pb2", "google.rpc.status_pb2", "numpy", "tidegate.client")
# What the small process runs: it loads nothing but sockets.
HAND_OVER = """
import socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
socket.send_fds(line, ["\\0".join(sys.argv[2:]).encode()], [0, 1, 2])
sys.exit(int(line.recv(10) or b"137"))
"""
REQUEST_BYTES_MAX = 1 << 16

_one: list[str] = []


def forked(*program: str) -> list[str]:
    """The command of a program: the path of a script or `-m MODULE`, and its arguments."""
    if not _one:
        _one.append(_start())
    return [sys.executable, "-I", "-S", "-c", HAND_OVER, _one[0], *program]


def _start() -> str:
    """Starts the process that forks. Returns the path of its socket."""
    folder = tempfile.TemporaryDirectory()
    path = str(Path(folder.name) / "socket")
    # Its errors go to the terminal, not into the output of a test.
    command = [sys.executable, "-m", "tests.forked_programs", path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    def close() -> None:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        folder.cleanup()

    atexit.register(close)
    return path


# In the other process -----------------------------------------------------------------------------------------------


def serve(listening: socket.socket) -> socket.socket | None:
    """Forks for each connection until stdin ends. Returns the connection in a forked process, None in this one."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who has ended leaves no zombie
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            return connection
        connection.close()


def become(connection: socket.socket) -> None:
    """Becomes the program that the connection asks for, and tells its exit code."""
    data, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES_MAX, 3)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    program, *arguments = data.decode().split("\0")
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    try:
        if program == "-m":
            program, *arguments = arguments
            sys.argv = [program, *arguments]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [program, *arguments]
            sys.path.insert(0, str(Path(program).parent))
            runpy.run_path(program, run_name="__main__")
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - as an interpreter does at its end
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(str(code).encode())
    os._exit(code)


def _end_with(connection: socket.socket) -> None:
    """Ends this process with that which handed its files over."""
    if not connection.recv(1):
        os._exit(137)


def main() -> None:
    """Loads everything, then serves requests."""
    for module in LOADED:
        importlib.import_module(module)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen(64)
        print("ready", flush=True)
        connection = serve(listening)
    if connection is not None:
        become(connection)


if __name__ == "__main__":
    main()
