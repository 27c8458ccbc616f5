"""The image as it runs in production: as any user, on a read-only root, without capabilities, with one volume."""

import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.image.container import IMAGE, serve, volume
from tests.ports import free_port
from tests.tls import make_certificates
from tidegate.blocking import Client

pytestmark = pytest.mark.skipif(not IMAGE, reason="`make test-image` sets TIDEGATE_IMAGE to the image that is tried")

GRACE_S = 30
# Which of these can be written to, and the rights of a process.
LOOK = """
for folder in / /tmp /var/tmp /run /opt/tidegate /models /data; do touch $folder/x 2>/dev/null && echo writable $folder; done
grep -E '^(Uid|Cap|NoNewPrivs)' /proc/1/status | tr '\\t' ' '
"""


def addresses() -> dict[str, str]:
    """Settings with ports that nobody uses."""
    grpc_port, metrics_port = free_port(), free_port()
    return {
        "TIDEGATE_HOST": "127.0.0.1",
        "TIDEGATE_PORT": str(grpc_port),
        "TIDEGATE_METRICS_PORT": str(metrics_port),
        "TIDEGATE_WORKERS": "2",
    }


def test_any_user_serves_and_writes_to_the_volume_only() -> None:
    """A user and a group that nobody knows, without capabilities: only /data can be written to."""
    uid = random.randint(100_000, 2_000_000_000)
    with volume() as data, serve(data, user=f"{uid}:{uid + 1}", variables=addresses()) as server:
        server.wait_until_ready()
        looked = server.exec("sh", "-c", LOOK).stdout.splitlines()
        code, log = server.stop(GRACE_S)
    assert [line for line in looked if line.startswith("writable")] == ["writable /data"]
    assert f"Uid: {uid} {uid} {uid} {uid}" in looked
    assert "NoNewPrivs: 1" in looked
    assert {line.split()[1] for line in looked if line.startswith("Cap")} == {"0000000000000000"}
    assert code == 0, log


def test_sigterm_drains_and_a_new_container_goes_on() -> None:
    """A stream that is open when SIGTERM comes is stored within the grace time, and goes on in the next container."""
    variables = addresses()
    address = f"127.0.0.1:{variables['TIDEGATE_PORT']}"
    user = f"{random.randint(100_000, 2_000_000_000)}:0"
    with volume() as data, ExitStack() as containers, Client(address) as client:
        server = containers.enter_context(serve(data, user=user, variables=variables))
        server.wait_until_ready()
        with client.open("pump") as stream:
            values = [0.5] * len(stream.model.features)
            steps = [stream.step(values).step for _ in range(4)]
            begun = time.monotonic()
            code, log = server.stop(GRACE_S)
            taken = time.monotonic() - begun
            containers.enter_context(serve(data, user=user, variables=variables)).wait_until_ready()
            steps.append(stream.step(values).step)
        following = client.describe_stream("pump").step
    assert (code, steps) == (0, [1, 2, 3, 4, 5]), log
    assert following == 5
    assert taken < GRACE_S


def test_the_health_check_follows_ports_and_tls(tmp_path: Path) -> None:
    """With other ports and with TLS the container is healthy, and not where no server listens."""
    certificates = make_certificates(tmp_path)
    tmp_path.chmod(0o755)
    for file in tmp_path.iterdir():
        file.chmod(0o644)
    variables = addresses() | {
        "TIDEGATE_TLS_CERT": f"/tls/{certificates.server_cert.name}",
        "TIDEGATE_TLS_KEY": f"/tls/{certificates.server_key.name}",
        "TIDEGATE_TLS_CLIENT_CA": f"/tls/{certificates.ca.name}",
    }
    with (
        volume() as data,
        serve(data, "--volume", f"{tmp_path}:/tls:ro", user="65532:65532", variables=variables) as server,
    ):
        assert variables["TIDEGATE_METRICS_PORT"] in server.wait_until_ready()
        healthy = server.health()
        elsewhere = server.exec("env", f"TIDEGATE_METRICS_PORT={free_port()}", "tidegate", "health", "--http")
        code, log = server.stop(GRACE_S)
    assert (healthy.returncode, elsewhere.returncode) == (0, 1), (healthy, elsewhere)
    assert code == 0, log


def test_a_volume_of_somebody_else_is_one_clear_line(tmp_path: Path) -> None:
    """A user who may not write to /data gets a line that names the folder and says what to do, and exit code 3."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    with serve(folder, user="12345:23456", variables=addresses()) as server:
        code, log = server.wait()
    error = [line for line in log.splitlines() if line.startswith("error: ")]
    assert (code, len(error)) == (3, 1), log
    assert "/data" in error[0]
    assert "Permission denied" in error[0]
    assert "12345" in error[0]
