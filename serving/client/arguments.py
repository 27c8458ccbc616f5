"""Checks arguments before anything is sent. An error names the argument, and says what was got and what was expected."""

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

# The protocol's limit for the name of a stream or an owner, in bytes of UTF-8.
NAME_BYTES_MAX = 256
PORT_MAX = 2**16 - 1
# Schemes of gRPC's name syntax.
SCHEMES = ("unix", "unix-abstract", "dns", "ipv4", "ipv6", "xds", "vsock")
# Schemes that people copy from a browser.
TLS_SCHEMES = ("https", "grpcs")
# What gRPC accepts as metadata. Keys that end in -bin have bytes, and keys that begin with grpc- are reserved.
METADATA_KEY = re.compile(r"[0-9a-z_.-]+")
METADATA_VALUE = re.compile(r"[ -~]*")
# The largest value of a uint32 field.
UINT32_MAX = 2**32 - 1


def format_value(value: object) -> str:
    """Formats a value for an error message: short, and on one line."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return " ".join(reprlib.repr(value).split())


def invalid(field: str, value: object, expected: str) -> InvalidArgument:
    """The error for an invalid argument."""
    return InvalidArgument(f"{field}: got {format_value(value)}, expected {expected}", field=field)


def text(field: str, value: object, *, bytes_max: int | None = None, minimum: int = 0) -> str:
    """Checks that an argument is text, of this many bytes of UTF-8."""
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
    """Checks the name of a stream or an owner. With `minimum` 1 it may not be empty."""
    return text(field, value, bytes_max=NAME_BYTES_MAX, minimum=minimum)


def address(field: str, value: object) -> str:
    """Checks the address of a server. Name resolution would silently reduce a port that is too large."""
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
    """Whether the host is an IPv6 address without brackets, so that its end would be read as the port."""
    return ":" in host and not host.startswith("[")


def _address_hint(target: str) -> str:
    """What an error expects instead of this address; it names the usual mistakes."""
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
    """Checks that an argument is an instance of a class, or None."""
    if value is not None and not isinstance(value, cls):
        raise invalid(field, value, expected)
    return value


def choice(field: str, value: object, choices: Mapping[str, U]) -> U:
    """Checks that an argument is one of these names. Returns the value for it."""
    if isinstance(value, str) and value in choices:
        return choices[value]
    names = ", ".join(filter(None, choices))
    raise invalid(field, value, f"one of {names}, or nothing for all" if "" in choices else f"one of {names}")


def metadata(field: str, value: object) -> tuple[tuple[str, str], ...]:
    """Checks the metadata of all calls. gRPC would end each call with invalid ones. Values are secrets, so errors do not show them."""
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


def mapping(field: str, value: object) -> Mapping[str, object] | None:
    """Checks that an argument is a mapping from names, or None."""
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise invalid(field, value, "a mapping from names to arrays, or None")
    return value


def boolean(field: str, value: object) -> bool:
    """Checks that an argument is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise invalid(field, value, "True or False")
    return bool(value)


def integer(field: str, value: object, minimum: int, maximum: int) -> int:
    """Checks that an argument is an integer within these bounds."""
    number = minimum - 1 if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)
    if not minimum <= number <= maximum:
        raise invalid(field, value, f"a whole number from {minimum} to {maximum}")
    return number


def seconds(field: str, value: object, *, zero: bool = False) -> float:
    """Checks that an argument is a time in seconds: above 0, or 0 with `zero`."""
    number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    if not (number > 0 or (zero and number == 0)):
        raise invalid(field, value, f"seconds, {'0 or more' if zero else 'more than 0'}")
    return number
