"""Starts Triton for a comparison, and prints a ready line, as `server_process.py` expects, when it is ready.

`peers.py` runs it with the folder of Triton's virtual environment, the path of the graph and an empty folder.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_SECONDS_MAX = 50


def lay_out(graph: Path, folder: Path) -> None:
    """Writes the model repository."""
    version = folder / "bench" / "1"
    version.mkdir(parents=True)
    shutil.copy(HERE / "config.pbtxt", folder / "bench")
    shutil.copy(HERE / "model.py", version)
    shutil.copy(graph, version / "model.onnx")


def free_port() -> int:
    """Returns a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(environment: Path, graph: Path, folder: Path) -> None:
    """Serves until it is stopped."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / f"python{python}" / "site-packages"
    triton = packages / "pytriton" / "tritonserver"
    # The wheel has a stub for each version of Python. Triton expects the right one here.
    shutil.copy(triton / "python_backend_stubs" / python / "triton_python_backend_stub", triton / "backends" / "python")
    lay_out(graph, folder)
    port = free_port()
    command = [
        *(str(triton / "bin" / "tritonserver"), "--model-repository", str(folder)),
        *("--backend-directory", str(triton / "backends"), "--grpc-address", "127.0.0.1", "--grpc-port", str(port)),
        *("--allow-http=false", "--allow-metrics=false", "--log-info=false", "--log-warning=false"),
    ]
    settings = {**os.environ, "TRITON_PACKAGES": str(packages)}  # for model.py
    with subprocess.Popen(command, env=settings, stdout=sys.stderr) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        deadline = time.monotonic() + START_SECONDS_MAX
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                sys.exit(f"tritonserver did not start: exit code {process.poll()}")
            time.sleep(0.1)
        print(f"ready: grpc=127.0.0.1:{port}", flush=True)
    sys.exit(process.returncode)


def answers(port: int) -> bool:
    """Whether the port is open. Triton opens it when its models are loaded."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:4]))
