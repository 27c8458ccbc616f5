"""The token file: which tokens get in, for which tenant, and what a tenant may do. It has hashes, no tokens.

[[token]]
sha256 = "9f86d0…"       # of the token; `tidegate token new` makes both
tenant = "plant-1"
admin = false            # may it administer models

[tenant.plant-1]         # optional; a limit that is left out is none
streams_max = 10000      # live and parked
live_max = 1000          # in memory, at each worker
opens_per_second = 50    # at each worker
steps_per_second = 5000  # at each worker

"""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidegate.core.access import Caller, Tenant, TenantLimits

# Longer than a file of ten thousand tokens. A file of another kind is not read to its end.
FILE_BYTES_MAX = 4 * 1024 * 1024
# A tenant's name is part of every key in the store.
TENANT = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
SHA256 = r"^[0-9a-f]{64}$"
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class InvalidTokenFile(Exception):
    """The file cannot be read, or has mistakes. The message has all of them."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: Annotated[str, Field(pattern=SHA256)]
    tenant: Annotated[str, Field(pattern=f"^{TENANT.pattern}$")]
    admin: bool = False


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    streams_max: Count | None = None
    live_max: Count | None = None
    opens_per_second: Rate | None = None
    steps_per_second: Rate | None = None

    def limits(self) -> TenantLimits:
        """The same for the core."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return TenantLimits(**given)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    token: tuple[_Entry, ...] = ()
    tenant: Mapping[str, _Limits] = {}


@dataclass(frozen=True, slots=True)
class Tokens:
    """The content of a token file: the caller of each token, by its SHA-256; and the tenants, by their names."""

    callers: Mapping[str, Caller]
    tenants: Mapping[str, Tenant]

    @classmethod
    def parse(cls, text: str, before: "Tokens | None" = None) -> "Tokens":
        """Parses a file. A tenant whose limits are those of `before` keeps what it has used of its rates.

        Raises InvalidTokenFile.
        """
        try:
            file = _File.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InvalidTokenFile(f"not TOML: {error}") from None
        except ValidationError as error:
            raise InvalidTokenFile("; ".join(_problem(one) for one in error.errors())) from None
        hashes = [entry.sha256 for entry in file.token]
        twice = sorted({one[:12] for one in hashes if hashes.count(one) > 1})
        unknown = sorted(file.tenant.keys() - {entry.tenant for entry in file.token})
        if twice or unknown:
            problems = [f"sha256 {one}… is there twice" for one in twice]
            problems += [f"tenant.{name}: no token has this tenant" for name in unknown]
            raise InvalidTokenFile("; ".join(problems))
        known = {} if before is None else before.tenants
        tenants: dict[str, Tenant] = {}
        for entry in file.token:
            limits = file.tenant.get(entry.tenant, _Limits()).limits()
            old = known.get(entry.tenant)
            tenants[entry.tenant] = old if old is not None and old.limits == limits else Tenant(entry.tenant, limits)
        callers = {entry.sha256: Caller(tenants[entry.tenant], entry.admin, entry.sha256) for entry in file.token}
        return cls(callers, tenants)


def token_hash(token: str) -> str:
    """The SHA-256 of a token. A token has 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def file_stamp(path: Path) -> tuple[int, int, int]:
    """What changes when the file does. Raises InvalidTokenFile."""
    try:
        stat = path.stat()
    except OSError as error:
        raise InvalidTokenFile(str(error.strerror)) from None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_file(path: Path) -> str:
    """The text of a token file. Raises InvalidTokenFile."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidTokenFile(str(error.strerror)) from None
    if len(data) > FILE_BYTES_MAX:
        raise InvalidTokenFile(f"it is longer than {FILE_BYTES_MAX} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidTokenFile(f"not UTF-8: {error.reason}") from None


def _problem(error: "Mapping[str, object]") -> str:
    """A mistake without the value: somebody may have written a token where its hash belongs."""
    location = error["loc"]
    assert isinstance(location, tuple)
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if error["type"] == "string_pattern_mismatch":
        expected = "64 hexadecimal digits" if location[-1] == "sha256" else "letters a to z, digits, and . _ - between"
        return f"{place}: expected {expected}"
    return f"{place}: {error['msg']}"
