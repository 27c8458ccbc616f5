"""Checks arguments before anything is sent. An error names the argument and what was expected."""

import math
import numbers
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

from tidegate.client.errors import InvalidArgument

T = TypeVar("T")
U = TypeVar("U")

# What the protocol allows a stream's name and an owner, in bytes of UTF-8.
NAME_BYTES_MAX = 256
PORT_MAX = 2**16 - 1
# What gRPC reads otherwise than as a host and a port.
SCHEMES = ("unix", "unix-abstract", "dns", "ipv4", "ipv6", "xds", "vsock")
# What people copy from a browser where TLS is meant.
TLS_SCHEMES = ("https", "grpcs")
# What gRPC sends as metadata; what ends in -bin would be bytes, what begins with grpc- is its own.
METADATA_KEY = re.compile(r"[0-9a-z_.-]+")
METADATA_VALUE = re.compile(r"[ -~]*")
# The largest number that a field of 32 bits without a sign can hold.
UINT32_MAX = 2**32 - 1


def format_value(value: object) -> str:
    """A value as an error message shows it: short, and on one line."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return " ".join(reprlib.repr(value).split())


def invalid(field: str, value: object, expected: str) -> InvalidArgument:
    """The error for an argument."""
    return InvalidArgument(f"{field}: got {format_value(value)}, expected {expected}", field=field)


def text(field: str, value: object, *, bytes_max: int | None = None, minimum: int = 0) -> str:
    """An argument that is text, of so many bytes of UTF-8."""
    expected = "text that is not empty" if minimum else "text"
    if bytes_max is not None:
        expected = f"text of {minimum} to {bytes_max} bytes of UTF-8"
    try:
        size = len(value.encode()) if isinstance(value, str) else -1
    except UnicodeEncodeError:
        size = -1
    if size < minimum or (bytes_max is not None and size > bytes_max):
        raise invalid(field, value, expected)
    return str(value)


def name(field: str, value: object, *, minimum: int = 0) -> str:
    """An argument that names a stream or an owner; with `minimum` 1 it may not be empty."""
    return text(field, value, bytes_max=NAME_BYTES_MAX, minimum=minimum)


def address(field: str, value: object) -> str:
    """An argument that says where a server is. A port that there is not would be taken for another one by the system."""
    target = text(field, value)
    scheme, _, rest = target.partition(":")
    host, _, port = target.rpartition(":")
    is_port = port.isdecimal() and 0 < int(port) <= PORT_MAX
    if scheme in SCHEMES and rest:
        return target
    if host and is_port and not _is_bare_ipv6(host):
        return target
    raise invalid(field, value, _address_hint(target))


def _is_bare_ipv6(host: str) -> bool:
    """Whether it is an IPv6 address without brackets, of which the end would be taken for a port; or behind a scheme, no host at all."""
    return ":" in host and not host.startswith("[")


def _address_hint(target: str) -> str:
    """What was expected instead of an address, said for the slips that are made."""
    scheme, slashes, _ = target.partition("://")
    if slashes:
        hint = f"HOST:PORT; leave out '{format_value(scheme)[1:-1]}://'"
        if scheme in TLS_SCHEMES:
            hint += ", and give credentials=grpc.ssl_channel_credentials() (CLI: --tls) for TLS"
        return hint
    if target and ":" not in target:
        return "HOST:PORT, such as localhost:50051"
    if _is_bare_ipv6(target.rpartition(":")[0]):
        return "HOST:PORT, with an IPv6 address in brackets, such as [::1]:50051"
    return f"HOST:PORT with a port from 1 to {PORT_MAX}, or unix:PATH"


def instance(field: str, value: T | None, cls: type[T], expected: str) -> T | None:
    """An argument that is one of a class, or None."""
    if value is not None and not isinstance(value, cls):
        raise invalid(field, value, expected)
    return value


def choice(field: str, value: object, choices: Mapping[str, U]) -> U:
    """An argument that is one of these names; gives what it stands for."""
    if isinstance(value, str) and value in choices:
        return choices[value]
    names = ", ".join(filter(None, choices))
    raise invalid(field, value, f"one of {names}, or nothing for all" if "" in choices else f"one of {names}")


def metadata(field: str, value: object) -> tuple[tuple[str, str], ...]:
    """An argument that is sent with every call. What gRPC does not send would end each of them; values are secrets, and not shown."""
    expected = "a list of (key, value) with keys of a-z, 0-9, '-', '_' and '.', and values of printable ASCII, or None"
    if value is None:
        return ()
    got = ""
    pairs: list[tuple[str, str]] = []
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        got, value = f"a {type(value).__name__}", ()
    for pair in value:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            got = f"a {type(pair).__name__} that is no pair of texts"
        elif not METADATA_KEY.fullmatch(pair[0]) or pair[0].endswith("-bin") or pair[0].startswith("grpc-"):
            got = f"the key {format_value(pair[0])}"
        elif not METADATA_VALUE.fullmatch(pair[1]):
            got = f"a value of {pair[0]} that cannot be sent"
        if got:
            break
        pairs.append((pair[0], pair[1]))
    if got:
        raise InvalidArgument(f"{field}: got {got}, expected {expected}", field=field)
    return tuple(pairs)


def boolean(field: str, value: object) -> bool:
    """An argument that is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise invalid(field, value, "True or False")
    return bool(value)


def integer(field: str, value: object, minimum: int, maximum: int) -> int:
    """An argument that is a whole number."""
    number = minimum - 1 if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)
    if not minimum <= number <= maximum:
        raise invalid(field, value, f"a whole number from {minimum} to {maximum}")
    return number


def seconds(field: str, value: object, *, zero: bool = False) -> float:
    """An argument that is a time in seconds, above 0 unless `zero` may be."""
    number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    if not (number > 0 or (zero and number == 0)):
        raise invalid(field, value, f"seconds, {'0 or more' if zero else 'more than 0'}")
    return number
