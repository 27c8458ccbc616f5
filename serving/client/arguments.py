"""What a caller gives, looked at before anything is sent: whoever is wrong is told in one sentence which argument, and what was expected."""

import math
import numbers
import reprlib

import numpy as np

from serving.client.errors import InvalidArgument

# What the protocol allows a stream's name and an owner, in bytes of UTF-8.
NAME_BYTES_MAX = 256
PORT_MAX = 2**16 - 1
# What gRPC reads otherwise than as a host and a port.
SCHEMES = ("unix", "unix-abstract", "dns", "ipv4", "ipv6", "xds", "vsock")
# The largest number that a field of 32 bits without a sign can hold.
UINT32_MAX = 2**32 - 1


def shown(value: object) -> str:
    """A value as an error message shows it: short, and on one line."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return " ".join(reprlib.repr(value).split())


def wrong(field: str, value: object, expected: str) -> InvalidArgument:
    """The error for an argument."""
    return InvalidArgument(f"{field}: got {shown(value)}, expected {expected}", field=field)


def text(field: str, value: object, *, bytes_max: int | None = None, least: int = 0) -> str:
    """An argument that is text, of so many bytes of UTF-8."""
    if bytes_max is None:
        expected = "text" if not least else "text that is not empty"
    else:
        expected = f"text of {least} to {bytes_max} bytes of UTF-8"
    try:
        size = len(value.encode()) if isinstance(value, str) else -1
    except UnicodeEncodeError:
        size = -1
    if size < least or (bytes_max is not None and size > bytes_max):
        raise wrong(field, value, expected)
    return str(value)


def name(field: str, value: object, *, least: int = 0) -> str:
    """An argument that names a stream or an owner; with `least` 1 it may not be empty."""
    return text(field, value, bytes_max=NAME_BYTES_MAX, least=least)


def address(field: str, value: object) -> str:
    """An argument that says where a server is. A port that there is not would be taken for another one by the system."""
    target = text(field, value)
    scheme, _, rest = target.partition(":")
    host, _, port = target.rpartition(":")
    is_port = port.isdecimal() and 0 < int(port) <= PORT_MAX
    if not (rest if scheme in SCHEMES else host and is_port):
        raise wrong(field, value, f"HOST:PORT with a port from 1 to {PORT_MAX}, or unix:PATH")
    return target


def flag(field: str, value: object) -> bool:
    """An argument that is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise wrong(field, value, "True or False")
    return bool(value)


def whole(field: str, value: object, least: int, most: int) -> int:
    """An argument that is a whole number."""
    number = least - 1 if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)
    if not least <= number <= most:
        raise wrong(field, value, f"a whole number from {least} to {most}")
    return number


def seconds(field: str, value: object, *, zero: bool = False) -> float:
    """An argument that is a time in seconds, above 0 unless `zero` may be."""
    number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    if not (number > 0 or (zero and number == 0)):
        raise wrong(field, value, f"seconds, {'0 or more' if zero else 'more than 0'}")
    return number
