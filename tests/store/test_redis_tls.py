"""Redis over TLS, by the real redis-server: who is let in, what is told, and certificates that are replaced."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.store.support import MODEL, RedisServer, checkpoint, claim, key
from tests.tls import Certificates, make_certificates
from tidegate.core.errors import StoreUnavailable
from tidegate.store import make_store

LOGIN = "ann:to%70%2Fsecret@"  # the password is "top/secret"


@pytest.fixture(scope="module")
def certificates(redis_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for the server and its client."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def tls_settings(certificates: Certificates, port: int) -> list[str]:
    """The settings of a redis that asks clients for a certificate and a login on this port."""
    settings = ["--tls-port", str(port), "--tls-ca-cert-file", str(certificates.ca), "--tls-auth-clients", "yes"]
    settings += ["--tls-cert-file", str(certificates.server_cert), "--tls-key-file", str(certificates.server_key)]
    settings += ["--bind", "127.0.0.1", "127.0.0.2"]
    return [*settings, "--user", "ann", "on", ">top/secret", "~*", "&*", "+@all"]


@pytest.fixture(scope="module")
def tls_port(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The TLS port of a redis."""
    port = free_port()
    server = RedisServer(tmp_path_factory.mktemp("redis"), *tls_settings(certificates, port))
    server.start()
    yield port
    server.kill()


def options(certificates: Certificates) -> str:
    """The options of an address with all files."""
    return f"?ca={certificates.ca}&cert={certificates.client_cert}&key={certificates.client_key}"


async def test_streams_are_kept_over_tls(
    certificates: Certificates, tls_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With CA, client certificate, user and password. None of the login is logged."""
    store = make_store(f"rediss://{LOGIN}localhost:{tls_port}/0{options(certificates)}")
    with caplog.at_level(logging.DEBUG):
        await store.start()
        assert await claim(store, key("a"), 0, MODEL) == 1
        assert await store.save([checkpoint("a", step=7)]) == [True]
        record = await store.load(key("a"))
        await store.close()
    assert record is not None
    assert record.checkpoint == checkpoint("a", step=7)
    assert repr(store) == f"<RedisStore rediss://localhost:{tls_port}/0>"
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("login", "address", "told"),
    [
        (
            LOGIN,
            "rediss://localhost:{port}",
            "its certificate is not accepted (self-signed certificate in certificate chain)",
        ),
        (
            LOGIN,
            "rediss://localhost:{port}?ca={ca}",
            "the options cert and key",
        ),
        (LOGIN, "rediss://127.0.0.2:{port}?ca={ca}", "IP address mismatch"),
        ("ann:wrong-secret@", "rediss://localhost:{port}{all}", "does not let this user in"),
        (LOGIN, "redis://localhost:{port}", "cannot be reached"),
        (LOGIN, "rediss://localhost:{port}?ca=/nowhere.pem", "the file /nowhere.pem cannot be read"),
        (LOGIN, "rediss://localhost:{port}?ca={ca}&cert={ca}&key={key}", "TLS failed (KEY_VALUES_MISMATCH)"),
    ],
    ids=["unknown-ca", "no-client-certificate", "other-name", "wrong-password", "without-tls", "no-file", "wrong-key"],
)
async def test_what_is_wrong_with_tls_is_told(
    certificates: Certificates, tls_port: int, login: str, address: str, told: str
) -> None:
    """In one line that has nothing of the login."""
    filled = address.format(port=tls_port, ca=certificates.ca, key=certificates.client_key, all=options(certificates))
    with pytest.raises(StoreUnavailable) as refused:
        await make_store(filled.replace("://", f"://{login}")).start()
    text = str(refused.value)
    assert told in text
    assert "secret" not in text
    assert "\n" not in text


async def test_certificates_may_be_replaced(
    certificates: Certificates, tmp_path: Path, make_folder: Callable[[str], Path]
) -> None:
    """After redis was restarted with certificates of another CA, the same store reads its files again."""
    mine = make_folder("mine")
    files = ("ca.pem", "client.pem", "client.key", "server.pem", "server.key")
    for file in files:
        shutil.copy(certificates.ca.parent / file, mine)
    now = Certificates(*(mine / file for file in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")))
    server = RedisServer(make_folder("data"), *tls_settings(now, port := free_port()))
    server.start()
    store = make_store(f"rediss://{LOGIN}localhost:{port}/0{options(now)}")
    try:
        await store.start()
        server.kill()
        others = make_certificates(make_folder("others"))
        for file in files:
            shutil.copy(others.ca.parent / file, mine)
        await asyncio.to_thread(server.start)
        assert await claim(store, key("a"), 0, MODEL) == 1
        await store.close()
    finally:
        server.kill()


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder of this name."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        return folder

    return make
