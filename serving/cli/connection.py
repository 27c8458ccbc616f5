"""The connection to a server: the options that all client commands share.

    @app.command()
    @with_server_options
    def models(*, connection: ConnectionSettings) -> None: ...

The command gets one `ConnectionSettings`, made from --address, --tls, --ca, --cert, --key and --token.
"""

import asyncio
import functools
import inspect
import ipaddress
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tidegate.cli.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from tidegate.cli.settings_file import server_environment
from tidegate.runtime.host import WILDCARDS, is_unix, with_port

if TYPE_CHECKING:
    import grpc  # imported when a command connects

    from tidegate.client import Client

T = TypeVar("T")

DEFAULT_PORT = 50051
PORT_MAX = 2**16 - 1


def default_address(environment: Mapping[str, str]) -> str:
    """Returns the address of a server that was started with the same TIDEGATE_HOST and TIDEGATE_PORT, as in a container."""
    host = environment.get("TIDEGATE_HOST", "")
    port = environment.get("TIDEGATE_PORT", "")
    if port and not port.isdecimal():
        raise typer.BadParameter(f"TIDEGATE_PORT: got '{port}', expected a number from 0 to {PORT_MAX}")
    # With port 0 only the ready line has the actual port, so the default port is used.
    return with_port("localhost" if not host or host in WILDCARDS else host, int(port or 0) or DEFAULT_PORT)


def _validate_address(value: str) -> str:
    """Returns the given address or the default. Checks the port, which the system would reduce modulo 65536."""
    address = value or default_address(server_environment(os.environ))
    port = address.rpartition(":")[2]
    if not is_unix(address) and port.isdecimal() and not 0 < int(port) <= PORT_MAX:
        raise typer.BadParameter(f"got port {port}, expected 1 to {PORT_MAX}")
    return address


Address = Annotated[
    str,
    typer.Option(
        envvar="TIDEGATE_ADDRESS",
        metavar="HOST:PORT",
        help="Address of the server; unix:PATH for a socket.",
        show_default="localhost, at TIDEGATE_PORT or 50051",
        callback=_validate_address,
    ),
]
Tls = Annotated[
    bool | None,
    typer.Option(
        "--tls/--no-tls",
        envvar="TIDEGATE_TLS",
        help="Use TLS.",
        show_default="no, but with --ca or --cert",
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        "--tls-ca",
        envvar="TIDEGATE_CA",
        metavar="FILE",
        help="PEM file with the CA certificates to trust.",
        show_default="those of gRPC",
    ),
]
CertFile = Annotated[
    Path | None,
    typer.Option(envvar="TIDEGATE_CERT", metavar="FILE", help="PEM file with the client certificate; with --key."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(envvar="TIDEGATE_KEY", metavar="FILE", help="PEM file with the private key of --cert."),
]
Token = Annotated[
    str,
    typer.Option(
        envvar="TIDEGATE_TOKEN",
        metavar="TEXT",
        help="Token to send as `authorization: Bearer TEXT`. Without TLS it is sent only to this machine, or with --no-tls.",
    ),
]

TokenFile = Annotated[
    Path | None,
    typer.Option(envvar="TIDEGATE_TOKEN_FILE", metavar="FILE", help="File that has the token in its only line."),
]


@dataclass(frozen=True)
class ConnectionSettings:
    """How to connect to a server.

    `tls` says whether to use TLS. `ca` has the trusted certificates; None means those of gRPC. `cert` and `key` are those of
    this client. All are PEM. `token` is empty when there is none.
    """

    address: str
    tls: bool = False
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str = field(default="", repr=False)

    @property
    def credentials(self) -> "grpc.ChannelCredentials | None":
        """The gRPC credentials of the channel; None without TLS."""
        import grpc  # noqa: PLC0415 - the import takes half a second, too long for --help

        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert) if self.tls else None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def client(self) -> "Client":
        """Makes a client. An event loop must be running."""
        from tidegate.client import Client  # noqa: PLC0415 - as above

        return Client(self.address, credentials=self.credentials, metadata=self.metadata)

    def call(self, act: "Callable[[Client], Awaitable[T]]") -> T:
        """Connects, and returns what `act` gives."""

        async def connected() -> T:
            async with self.client() as client:
                return await act(client)

        return asyncio.run(connected())


def make_connection(
    address: Address = "",
    tls: Tls = None,
    ca: CaFile = None,
    cert: CertFile = None,
    key: KeyFile = None,
    token: Token = "",
    token_file: TokenFile = None,
) -> ConnectionSettings:
    """Makes connection settings from the options. `tls` is None when neither --tls nor --no-tls was given.

    Raises:
        CommandError: the options contradict each other, or a file cannot be read.
    """
    from tidegate.client import InvalidArgument, arguments  # noqa: PLC0415 - as above

    try:
        arguments.address("address", address)
    except InvalidArgument as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    files = {"--ca": ca, "--cert": cert, "--key": key}
    use_tls = any(path is not None for path in files.values()) if tls is None else tls
    for option, path in files.items():
        if path is not None and not use_tls:
            raise CommandError(f"{option}: has no effect without TLS; leave it out, or leave out --no-tls", EXIT_USAGE)
    if (cert is None) != (key is None):
        given, other = ("--key", "--cert") if cert is None else ("--cert", "--key")
        raise CommandError(f"{given}: got no {other}, expected both or none of them", EXIT_USAGE)
    if token and token_file is not None:
        raise CommandError("--token-file: got --token too, expected one of them", EXIT_USAGE)
    if token_file is not None:
        token = (_read_file("--token-file", token_file) or b"").decode("ascii", errors="replace").strip()
        if not token:
            raise CommandError(f"--token-file: {token_file} is empty, expected a token", EXIT_USAGE)
    if not (token.isascii() and token.isprintable() and token == token.strip()):  # the message must not show the secret
        raise CommandError(
            "--token: got characters that cannot be sent, expected printable ASCII without surrounding spaces",
            EXIT_USAGE,
        )
    if token and not use_tls and tls is None and not _is_loopback(address):
        raise CommandError(
            f"--token: without TLS it could be read on the way to {address}; add --tls, or --no-tls to send it anyway",
            EXIT_USAGE,
        )
    contents = {option: _read_file(option, path) for option, path in files.items()}
    _validate_pem(ca, cert, key)
    return ConnectionSettings(address, use_tls, contents["--ca"], contents["--cert"], contents["--key"], token)


def unavailable(address: str, error: object) -> CommandError:
    """The error of a command whose server cannot be reached."""
    return CommandError(f"server {address} is not available: {error}", EXIT_FAILURE)


def with_server_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds the options of a connection to a command. The command gets them as its argument `connection`."""
    options = inspect.signature(make_connection).parameters
    own = [part for part in inspect.signature(command).parameters.values() if part.name != "connection"]

    @functools.wraps(command)
    def run(**values: Any) -> T:
        connection = make_connection(**{name: values.pop(name) for name in options})
        return command(**values, connection=connection)

    parameters = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in (*options.values(), *own)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads the options from it
    return run


def _is_loopback(address: str) -> bool:
    """Whether the address is on this machine."""
    host = address.rpartition(":")[0]
    try:
        return is_unix(address) or host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a host name
        return False


def _read_file(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{option}: {path} cannot be read: {error.strerror}", EXIT_USAGE) from None


def _validate_pem(ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """Checks the files. gRPC would only report that it cannot connect."""
    if ca is None and cert is None:
        return
    import ssl  # noqa: PLC0415 - only needed with TLS

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError:
            raise CommandError(f"--ca: {ca} has no certificates in PEM format", EXIT_USAGE) from None
    if cert is not None:
        try:
            context.load_cert_chain(cert, key, password="")  # else OpenSSL would ask for a password, which gRPC cannot
        except ssl.SSLError:
            raise CommandError(
                f"--cert: {cert} and {key} are not a certificate and its private key in PEM format without a password",
                EXIT_USAGE,
            ) from None
