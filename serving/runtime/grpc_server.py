"""The gRPC server, its options and its port."""

from collections.abc import Sequence

import grpc

from tidegate.runtime.host import is_unix, why_not_unix
from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.tls import TlsCredentials
from tidegate.runtime.tls_files import TlsFiles


def make_grpc_server(
    interceptors: "Sequence[grpc.aio.ServerInterceptor]",
    *,
    connections_max: int,
    message_bytes_max: int,
    shares_port: bool,
) -> "grpc.aio.Server":
    """A server without ports and services."""
    return grpc.aio.server(
        interceptors=interceptors,
        options=[
            # Further connections are closed at once. Without a descriptor they would hang, and their clients with them.
            ("grpc.max_allowed_incoming_connections", connections_max),
            # A second server on a taken port must fail, not share it silently. Workers must share the port; their
            # supervisor has checked that it was free, and holds it.
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_receive_message_length", message_bytes_max),
            # A call whose client does not read buffers 64 KB, about a thousand timesteps. With the BDP probe that would
            # grow to megabytes.
            ("grpc.http2.bdp_probe", 0),
            # Find dead connections within a minute. gRPC's default is two hours.
            ("grpc.keepalive_time_ms", 40_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Clients may send keepalive pings without data, at most one every 10 s.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )


def listen(server: "grpc.aio.Server", address: str, files: TlsFiles | None) -> int:
    """Has a server listen on an address, with TLS when there are files for it. Returns the port. Raises StartFailed."""
    if is_unix(address) and (why := why_not_unix(address)):
        raise StartFailed(f"cannot listen on {address} for gRPC: {why}")
    try:
        port: int = (
            server.add_insecure_port(address)
            if files is None
            else server.add_secure_port(address, TlsCredentials(files).credentials)
        )
    except RuntimeError as error:
        raise StartFailed(
            f"cannot listen on {address} for gRPC: the port is taken or the address is not ours"
        ) from error
    return port
