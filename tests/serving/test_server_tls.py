"""TLS of the server: who gets in, and certificates that change while it serves."""

import shutil
from pathlib import Path

import grpc
import pytest

from tests.servers import address_of, run_server
from tests.tls import Certificates, make_certificates
from tidegate.client import Client, ServerUnavailable
from tidegate.runtime.config import InvalidSetting, ServerConfig
from tidegate.runtime.lifecycle import StartFailed


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, and what it signed."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The same of another CA."""
    return make_certificates(tmp_path_factory.mktemp("others"))


def tls(certificates: Certificates, *, clients: bool = False) -> dict[str, str]:
    """The settings of a server with these certificates; with `clients` its clients need one too."""
    settings = {"tls_cert": str(certificates.server_cert), "tls_key": str(certificates.server_key)}
    return settings | ({"tls_client_ca": str(certificates.ca)} if clients else {})


async def predict(address: str, credentials: grpc.ChannelCredentials | None) -> float:
    """The answer to one timestep."""
    async with (
        Client(address, credentials=credentials, timeout_s=3.0, reconnect_s=0.0) as client,
        client.open() as stream,
    ):
        return float((await stream.step([1.0]))["sum"].item())


async def test_a_client_that_trusts_the_ca_gets_in(sum_root: Path, certificates: Certificates) -> None:
    """Its timesteps are answered over TLS."""
    async with run_server(sum_root, **tls(certificates)) as server:
        assert await predict(address_of(server), certificates.credentials()) == 1.0


async def test_a_client_without_tls_is_refused(sum_root: Path, certificates: Certificates) -> None:
    """The port speaks TLS only."""
    async with run_server(sum_root, **tls(certificates)) as server:
        with pytest.raises(ServerUnavailable):
            await predict(address_of(server), None)


async def test_a_client_needs_a_certificate_when_the_server_has_a_ca_for_them(
    sum_root: Path, certificates: Certificates, others: Certificates
) -> None:
    """One that this CA signed: with none, or that of another CA, nobody gets in."""
    async with run_server(sum_root, **tls(certificates, clients=True)) as server:
        address = address_of(server)
        assert await predict(address, certificates.credentials(client=True)) == 1.0
        stranger = grpc.ssl_channel_credentials(
            certificates.ca.read_bytes(), others.client_key.read_bytes(), others.client_cert.read_bytes()
        )
        for credentials in (certificates.credentials(), stranger):
            with pytest.raises(ServerUnavailable):
                await predict(address, credentials)


@pytest.mark.parametrize("expired", ["server", "client"])
async def test_an_expired_certificate_is_refused(
    sum_root: Path, tmp_path: Path, certificates: Certificates, expired: str
) -> None:
    """That of a client by the server, and that of the server by its clients; its CA is the right one."""
    old = make_certificates(tmp_path, days=-1)
    new_ca = {"tls_client_ca": str(old.ca)}
    settings = tls(certificates) | new_ca if expired == "client" else tls(old)
    trusted = certificates.ca if expired == "client" else old.ca
    pair = (old.client_key.read_bytes(), old.client_cert.read_bytes()) if expired == "client" else (None, None)
    async with run_server(sum_root, **settings) as server:
        with pytest.raises(ServerUnavailable):
            await predict(address_of(server), grpc.ssl_channel_credentials(trusted.read_bytes(), *pair))


def copy(source: Certificates, folder: Path) -> Certificates:
    """The same files elsewhere."""
    names = ("ca", "server_cert", "server_key", "client_cert", "client_key")
    return Certificates(*(Path(shutil.copy(getattr(source, name), folder / name)) for name in names))


async def test_a_changed_certificate_is_used_from_then_on(
    sum_root: Path, tmp_path: Path, certificates: Certificates, others: Certificates
) -> None:
    """A renewal needs no restart, and open calls go on."""
    files = copy(certificates, tmp_path)
    async with run_server(sum_root, **tls(files)) as server:
        address = address_of(server)
        async with Client(address, credentials=certificates.credentials()) as client, client.open() as stream:
            await stream.step([1.0])
            copy(others, tmp_path)
            assert await predict(address, others.credentials()) == 1.0
            with pytest.raises(ServerUnavailable):
                await predict(address, certificates.credentials())
            assert (await stream.step([1.0]))["sum"].item() == 2.0


async def test_a_broken_certificate_leaves_the_one_before(
    sum_root: Path, tmp_path: Path, certificates: Certificates, others: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a renewal the key does not fit; the log says so once."""
    files = copy(certificates, tmp_path)
    async with run_server(sum_root, **tls(files)) as server:
        shutil.copy(others.server_cert, files.server_cert)
        for _ in range(2):
            assert await predict(address_of(server), certificates.credentials()) == 1.0
    assert caplog.text.count("is not read again") == 1
    assert "PRIVATE KEY" not in caplog.text


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca"])
async def test_a_file_that_cannot_be_used_stops_the_start(
    sum_root: Path, tmp_path: Path, certificates: Certificates, name: str
) -> None:
    """The error names the file."""
    bad = tmp_path / "bad.pem"
    bad.write_text("no PEM", "ascii")
    for path in (bad, tmp_path / "missing.pem"):
        with pytest.raises(StartFailed, match=path.name):
            async with run_server(sum_root, **tls(certificates, clients=True) | {name: str(path)}):
                pass


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"tls_cert": "a"}, "tls_key"), ({"tls_key": "a"}, "tls_cert"), ({"tls_client_ca": "a"}, "tls_cert")],
)
def test_half_of_a_pair_is_refused(settings: dict[str, str], name: str) -> None:
    """TLS needs a certificate and its key."""
    with pytest.raises(InvalidSetting, match=name):
        ServerConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "host", "exposed"),
    [
        ({}, "localhost", False),
        ({"tls_cert": "a", "tls_key": "b"}, "0.0.0.0", False),
        ({"host": "::"}, "::", True),
        ({"host": "127.0.0.2"}, "127.0.0.2", False),
        ({"host": "[::1]"}, "[::1]", False),
        ({"host": "example.org"}, "example.org", True),
    ],
)
def test_only_this_machine_gets_in_without_tls_unless_asked_for(
    settings: dict[str, str], host: str, exposed: bool
) -> None:
    """With TLS the server listens on all addresses."""
    config = ServerConfig(**settings)
    assert (config.host, config.exposed) == (host, exposed)


async def test_the_log_warns_of_an_open_port(sum_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reaches it may do everything."""
    async with run_server(sum_root, host="0.0.0.0"):
        pass
    assert "has no TLS" in caplog.text
