"""The commands against a server with TLS and tokens, in separate processes."""

import re
from pathlib import Path

import pytest

from tests.graphs import running_sum, write_model
from tests.servers import run_command, serve
from tests.tls import Certificates, make_certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, and what it signed."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def new_token(folder: Path, tenant: str) -> tuple[Path, str]:
    """A file with a new token, as for --token-file; and the lines for the server."""
    done = run_command("token", "new", "--tenant", tenant)
    assert done.returncode == 0, done.stderr
    (token,) = re.findall(r"^token, for the client: (\S+)$", done.stdout, re.MULTILINE)
    path = folder / f"{tenant}.token"
    path.write_text(token + "\n", "ascii")
    return path, done.stdout[done.stdout.index("[[token]]") :]


def test_a_server_with_workers_tls_and_tokens(tmp_path: Path, certificates: Certificates) -> None:
    """Whoever has the CA and a token gets in; the health check needs neither."""
    token, lines = new_token(tmp_path, "plant-1")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(lines, "utf-8")
    root = write_model(tmp_path / "models", running_sum())
    options = ("--tls-cert", certificates.server_cert, "--tls-key", certificates.server_key, "--tokens", tokens)
    state = ("--state", f"sqlite://{tmp_path / 'db'}", "--workers", "2")
    with serve(root, *map(str, options), *state) as server:
        address = server.address.replace("127.0.0.1", "localhost")
        ours = ("--address", address, "--tls-ca", str(certificates.ca))
        assert "sum, steps" in run_command("models", *ours, "--token-file", str(token)).stdout
        refused = run_command("models", *ours)
        assert (refused.returncode, "authorization: Bearer" in refused.stderr) == (1, True), refused.stderr
        assert run_command("models", "--address", address, "--token-file", str(token)).returncode == 1
        port = server.ready_line.split("metrics=http://")[1].split("/")[0].rpartition(":")[2]
        healthy = run_command("health", "--http", TIDEGATE_METRICS_PORT=port)
        assert (healthy.returncode, healthy.stdout) == (0, "ok\n")
    dead = run_command("health", "--http", TIDEGATE_METRICS_PORT=port)
    assert (dead.returncode, dead.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("tenant", ["", "a/b", 'a"', "A"])
def test_a_tenant_has_a_plain_name(tenant: str) -> None:
    """It is part of every key in the store."""
    done = run_command("token", "new", "--tenant", tenant)
    assert (done.returncode, done.stderr.startswith("error: --tenant")) == (2, True), done.stderr


def test_an_empty_token_file_is_refused(tmp_path: Path) -> None:
    """Else the call would be made without a token."""
    path = tmp_path / "empty"
    path.write_text("\n", "ascii")
    done = run_command("models", "--token-file", str(path))
    assert (done.returncode, "is empty, expected a token" in done.stderr) == (2, True), done.stderr
