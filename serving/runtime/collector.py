"""Where spans are sent: the OpenTelemetry collector that `--otlp-endpoint` or the standard variables name.

Nothing of OpenTelemetry is imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, TypeGuard
from urllib.parse import urlsplit

Protocol = Literal["grpc", "http/protobuf"]
# Where the exporter of each protocol is imported from, and what is installed to get it.
EXPORTERS: Mapping[Protocol, tuple[str, str]] = {
    "grpc": ("opentelemetry.exporter.otlp.proto.grpc", "tidegate[otel]"),
    "http/protobuf": (
        "opentelemetry.exporter.otlp.proto.http",
        "tidegate[otel] opentelemetry-exporter-otlp-proto-http",
    ),
}


@dataclass(frozen=True, slots=True)
class Collector:
    """A collector. An empty `endpoint` stands for what the variables say, which the exporter reads itself."""

    endpoint: str
    protocol: Protocol


def find_collector(option: str, variables: Mapping[str, str]) -> Collector | None:
    """The collector that gets spans; None when nobody wants them.

    The option comes first. Without it spans are sent when a variable says where, or that they are.

    Args:
        option: the value of `--otlp-endpoint`; empty when it was not given.
        variables: the environment.

    Raises:
        ValueError: spans are wanted and cannot be sent; the text says what to do.

    """
    exporter = variables.get("OTEL_TRACES_EXPORTER", "").strip()
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return None
    if not (option or exporter or _variable(variables, "ENDPOINT")):
        return None
    if exporter not in ("", "otlp"):
        raise ValueError(f"OTEL_TRACES_EXPORTER: got '{exporter}', expected otlp or none")
    if option:
        _check_endpoint(option)
    protocol = _variable(variables, "PROTOCOL") or "grpc"
    if not _is_protocol(protocol):
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: got '{protocol}', expected {' or '.join(EXPORTERS)}")
    module, packages = EXPORTERS[protocol]
    if not (_is_installed("opentelemetry.sdk") and _is_installed(module)):
        raise ValueError(f"OpenTelemetry for {protocol} is not installed; run pip install {packages}")
    return Collector(option, protocol)


def _variable(variables: Mapping[str, str], name: str) -> str:
    """The standard variable of that name: the one for traces, or the one for all signals."""
    found = variables.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or variables.get(f"OTEL_EXPORTER_OTLP_{name}", "")
    return found.strip()


def _check_endpoint(option: str) -> None:
    try:
        parts = urlsplit(option)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"got '{option}', expected http://HOST:PORT, or https://HOST:PORT for TLS")


def _is_protocol(text: str) -> TypeGuard[Protocol]:
    return text in EXPORTERS


def _is_installed(module: str) -> bool:
    """Whether a module can be found. Only namespace packages are imported for that."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
