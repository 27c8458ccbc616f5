"""TLS for tests: certificates signed by openssl, and a TLS proxy for a server without TLS."""

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.timeouts import TIMEOUT_S

# The extensions of a server's certificate, and of a client's.
PURPOSES = {
    "server": "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n",
    "client": "extendedKeyUsage=clientAuth\n",
}


@dataclass(frozen=True)
class Certificates:
    """PEM files: the CA, and the certificates that it signed."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    def credentials(self, *, client: bool = False) -> grpc.ChannelCredentials:
        """The credentials of a client that trusts the CA; with `client` it has its own certificate."""
        key, cert = (self.client_key.read_bytes(), self.client_cert.read_bytes()) if client else (None, None)
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), key, cert)

    def context(self, *, both: bool = False) -> ssl.SSLContext:
        """The context of a server; with `both` its clients need a certificate too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_cert, self.server_key)
        context.set_alpn_protocols(["h2"])
        if both:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_certificates(folder: Path, *, days: int = 2) -> Certificates:
    """Creates a CA, and certificates for a server on this machine and a client. Skips if openssl is missing.

    The certificates that it signs are valid for so many days; with -1 they have expired yesterday.
    """
    if shutil.which("openssl") is None:
        assert os.environ.get("TIDEGATE_REQUIRE_ALL") != "1", "openssl is missing; apt-get install openssl"
        pytest.skip("openssl is missing")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder, timeout=TIMEOUT_S)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test CA")
    for name, purpose in PURPOSES.items():
        (folder / f"{name}.ext").write_text(purpose)
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", f"{name}.ext", "-days", str(days))
        openssl("x509", "-req", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", *signed)
    files = ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")
    return Certificates(*(folder / file for file in files))


@asynccontextmanager
async def tls_before(address: str, context: ssl.SSLContext) -> AsyncIterator[str]:
    """A TLS proxy in front of a server without TLS. Yields its address. It forwards all bytes."""
    host, _, port = address.rpartition(":")
    connections: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(host, int(port))
        pumps = {asyncio.create_task(pump(reader, behind_writer)), asyncio.create_task(pump(behind_reader, writer))}
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in pumps:
                one.cancel()
            await asyncio.wait(pumps)
            for end in (writer, behind_writer):
                end.transport.abort()  # a clean TLS shutdown may take 30 s
                with suppress(OSError):
                    await end.wait_closed()

    def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(hand_on(reader, writer)))

    door = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    try:
        yield f"localhost:{door.sockets[0].getsockname()[1]}"
    finally:
        door.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await door.wait_closed()
