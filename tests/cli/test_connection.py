"""The connection options, which all client commands share."""

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer.main

from tests.client.test_tls import answer_models, recording
from tests.servers import address_of, run_command, run_server
from tests.tls import Certificates, make_certificates, tls_before
from tidegate.cli import app as cli
from tidegate.cli.connection import ConnectionSettings, make_connection
from tidegate.cli.errors import EXIT_USAGE, CommandError

OPTIONS = ("address", "tls", "ca", "cert", "key", "token")
AWAY, HERE = "tide.example:50051", "localhost:50051"
SECRET = "very-secret"

Ended = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA and certificates that it signed."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


async def run(*arguments: str, **variables: str) -> Ended:
    """Runs a command while a server runs in this process."""
    return await asyncio.to_thread(run_command, *arguments, **variables)


def refused(ended: Ended, *words: str) -> None:
    """Checks exit code 2 and one line with these words, and no secret."""
    assert ended.returncode == EXIT_USAGE, ended.stderr
    assert re.fullmatch(r"error: [^\n]*\n", ended.stderr)
    assert all(word in ended.stderr for word in words), ended.stderr
    assert SECRET not in ended.stderr


def commands() -> dict[str, Any]:
    """Returns every command that connects through the client, by name."""
    group: Any = typer.main.get_command(cli.app)
    found = {name: group.commands[name] for name in ("stream", "models", "health")}
    return found | {f"streams {name}": one for name, one in group.commands["streams"].commands.items()}


@pytest.mark.parametrize("command", commands().values(), ids=commands())
def test_every_command_has_the_same_connection_options(command: Any) -> None:
    """By options that each have an environment variable."""
    assert [part.name for part in command.params if part.name in OPTIONS] == list(OPTIONS)
    for part in command.params:
        if part.name in OPTIONS:
            assert part.envvar == f"TIDEGATE_{part.name.upper()}"


async def test_commands_use_tls(certificates: Certificates, sum_root: Path, tmp_path: Path) -> None:
    """By options or by environment variables, to a server that requires a client certificate."""
    rows = tmp_path / "rows.csv"
    rows.write_text("x\n1\n2\n")
    files = {"ca": certificates.ca, "cert": certificates.client_cert, "key": certificates.client_key}
    variables = {f"TIDEGATE_{name.upper()}": str(path) for name, path in files.items()}
    async with (
        run_server(sum_root) as server,
        tls_before(address_of(server), certificates.context(both=True)) as address,
    ):
        options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
        ended = [
            await run("health", "--tls", "--address", address, *options),
            await run("models", "--address", address, *options),
            await run("stream", str(rows), "--stream-id", "a", TIDEGATE_ADDRESS=address, **variables),
            await run("streams", "list", TIDEGATE_ADDRESS=address, TIDEGATE_TLS="1", **variables),
        ]
    for one, expected in zip(ended, ("SERVING", "toy", "2 timesteps in ", "a "), strict=True):
        assert one.returncode == 0, one.stderr
        assert expected in one.stdout
        assert one.stderr == ""


async def test_an_untrusted_server_is_a_failure(certificates: Certificates, sum_root: Path) -> None:
    """Exit code 1, as for an unreachable server."""
    async with (
        run_server(sum_root) as server,
        tls_before(address_of(server), certificates.context()) as address,
    ):
        for command in ("health", "models"):
            ended = await run(command, "--tls", "--address", address)
            assert ended.returncode == 1
            assert f"server {address} is not available" in ended.stderr


async def test_a_token_is_sent_with_every_request() -> None:
    """As `authorization: Bearer` with every kind of request. It is not printed."""
    async with recording() as (address, servicer, recorder):
        answer_models(servicer)
        ended = [
            await run("models", "--address", address, "--token", SECRET),
            await run("health", "--address", address, TIDEGATE_TOKEN=SECRET),
            await run("models", "--address", address),
        ]
    bearer = [f"Bearer {SECRET}"]
    assert recorder.seen == [
        *((method, bearer) for method in ("ListModels", "ListVersions", "Check")),
        *((method, []) for method in ("ListModels", "ListVersions")),
    ]
    assert all(SECRET not in one.stdout + one.stderr for one in ended)


def test_a_file_that_cannot_be_read_is_refused() -> None:
    """In one line, before a request."""
    refused(run_command("models", "--ca", "absent.pem"), "--ca: absent.pem cannot be read: No such file or directory")
    refused(run_command("health", "--address", AWAY, TIDEGATE_TOKEN=SECRET), "--token: without TLS")
    refused(run_command("health", "--address", "https://x:1"), "leave out 'https://'", "--tls")


def test_the_options_become_connection_settings(certificates: Certificates) -> None:
    """A certificate means TLS."""
    assert make_connection(HERE) == ConnectionSettings(HERE)
    assert make_connection(AWAY, tls=True, token=SECRET) == ConnectionSettings(AWAY, tls=True, token=SECRET)
    assert make_connection(AWAY, ca=certificates.ca) == ConnectionSettings(
        AWAY, tls=True, ca=certificates.ca.read_bytes()
    )
    both = make_connection(AWAY, cert=certificates.client_cert, key=certificates.client_key)
    assert both.tls
    assert (both.cert, both.key) == (certificates.client_cert.read_bytes(), certificates.client_key.read_bytes())
    assert isinstance(both.credentials, grpc.ChannelCredentials)
    assert ConnectionSettings(HERE).credentials is None
    assert ConnectionSettings(HERE).metadata == ()


def test_a_secret_is_not_shown() -> None:
    """The repr has no token and no key."""
    assert SECRET not in repr(ConnectionSettings(HERE, tls=True, key=SECRET.encode(), token=SECRET))


@pytest.mark.parametrize("address", [HERE, "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "unix:/run/s"])
def test_a_token_is_sent_without_tls_to_this_machine(address: str) -> None:
    """The connection does not leave the machine."""
    assert make_connection(address, token=SECRET).metadata == (("authorization", f"Bearer {SECRET}"),)


@pytest.mark.parametrize("address", [AWAY, "10.0.0.1:1", "[fd00::1]:1", "localhost.example:1"])
def test_a_token_is_sent_without_tls_to_others_only_with_no_tls(address: str) -> None:
    """--no-tls allows it, for example when a service mesh encrypts the connection."""
    with pytest.raises(
        CommandError, match=r"--token: without TLS .* add --tls, or --no-tls to send it anyway"
    ) as caught:
        make_connection(address, token=SECRET)
    assert caught.value.exit_code == EXIT_USAGE
    assert SECRET not in str(caught.value)
    assert make_connection(address, tls=False, token=SECRET).token == SECRET


@pytest.mark.parametrize("token", [f" {SECRET}", f"{SECRET}\n", f"{SECRET}ü", f"{SECRET}\x00"])
def test_a_token_that_cannot_be_sent_is_refused(token: str) -> None:
    """The message does not show it."""
    with pytest.raises(CommandError, match="--token: got characters that cannot be sent") as caught:
        make_connection(HERE, token=token)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cert": "client_cert"}, "--cert: got no --key, expected both or none of them"),
        ({"key": "client_key"}, "--key: got no --cert, expected both or none of them"),
        ({"tls": False, "ca": "ca"}, "--ca: has no effect without TLS; leave it out, or leave out --no-tls"),
        ({"ca": "client_key"}, "--ca: .*client.key has no certificates in PEM format"),
        ({"cert": "client_key", "key": "client_cert"}, "--cert: .* are not a certificate and its private key"),
        ({"cert": "client_cert", "key": "server_key"}, "--cert: .* are not a certificate and its private key"),
    ],
)
def test_files_that_do_not_fit_are_refused(certificates: Certificates, options: dict[str, Any], message: str) -> None:
    """The gRPC library would only report that it cannot connect."""
    files = {name: value if value is False else getattr(certificates, value) for name, value in options.items()}
    with pytest.raises(CommandError, match=message) as caught:
        make_connection(HERE, **files)
    assert caught.value.exit_code == EXIT_USAGE


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """It cannot be read."""
    with pytest.raises(CommandError, match=r"--ca: .* cannot be read: Is a directory"):
        make_connection(HERE, ca=tmp_path)
