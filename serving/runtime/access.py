"""Who gets in: the tokens of a file that is read again when it changes, and the rates of tenants."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Literal

from tidegate.core.access import DEFAULT_TENANT, Caller, Tenant, TenantLimits
from tidegate.core.errors import OpensLimited, PermissionDenied, StepsLimited, Unauthenticated
from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.token_file import InvalidTokenFile, Tokens, file_stamp, read_file, token_hash

log = logging.getLogger("tidegate.access")

SCHEME = "bearer "
NO_LIMITS = TenantLimits()
# Why a call or a timestep was refused, as in the metric.
Refusal = Literal["unauthenticated", "permission_denied", "opens", "steps"]


class Access:
    """Says who makes a call. Without a token file everybody is the default tenant, and may do everything.

    Args:
        path: the token file; None when there is none.
        count: called with the reason of each refusal.

    Raises StartFailed when the file cannot be used.
    """

    def __init__(self, path: Path | None, count: Callable[[Refusal], None]) -> None:
        self._path = path
        self._count = count
        self._tokens = Tokens({}, {})
        self._anybody = Caller(Tenant(DEFAULT_TENANT), admin=True)
        self._stamp: tuple[int, int, int] | None = None
        if path is not None:
            try:
                self._stamp = file_stamp(path)
                self._tokens = Tokens.parse(read_file(path))
            except InvalidTokenFile as error:
                raise StartFailed(f"{path}: {error}") from error

    @property
    def is_open(self) -> bool:
        """Whether anybody may do everything."""
        return self._path is None

    def identify(self, authorization: str) -> Caller:
        """Who calls, from the `authorization` header of the call; empty when there is none.

        Raises Unauthenticated.
        """
        if self._path is None:
            return self._anybody
        if authorization[: len(SCHEME)].lower() != SCHEME:
            self._count("unauthenticated")
            raise Unauthenticated("the call has no token; send the header `authorization: Bearer TOKEN`")
        # A hash of a random token is compared by lookup: how long that takes tells nothing about the token.
        caller = self._tokens.callers.get(token_hash(authorization[len(SCHEME) :].strip()))
        if caller is None:
            self._count("unauthenticated")
            raise Unauthenticated("the token is unknown, or was withdrawn")
        return caller

    def is_valid(self, caller: Caller) -> bool:
        """Whether the token of a caller still gets in, for the same tenant."""
        if self._path is None:
            return True
        now = self._tokens.callers.get(caller.token_sha256)
        return now is not None and now.tenant is caller.tenant and now.admin == caller.admin

    def take_open(self, caller: Caller) -> None:
        """Counts an open of a stream. Raises OpensLimited when the tenant opens faster than it may."""
        bucket = caller.tenant.opens
        if wait_s := bucket.take(1, monotonic()):
            self._count("opens")
            raise OpensLimited(bucket.rate, math.ceil(1000 * wait_s))

    def take_steps(self, caller: Caller, count: int) -> None:
        """Counts timesteps. Raises StepsLimited when the tenant sends faster than it may."""
        bucket = caller.tenant.steps
        if wait_s := bucket.take(count, monotonic()):
            self._count("steps")
            raise StepsLimited(bucket.rate, math.ceil(1000 * wait_s))

    def require_admin(self, caller: Caller) -> None:
        """Raises PermissionDenied unless the caller may administer models."""
        if not caller.admin:
            self._count("permission_denied")
            raise PermissionDenied(f"the token of tenant '{caller.tenant.name}' may not administer models")

    def limits_of(self, tenant: str) -> TenantLimits:
        """The limits of a tenant."""
        found = self._tokens.tenants.get(tenant)
        return NO_LIMITS if found is None else found.limits

    def reload(self) -> bool:
        """Reads the file again if it has changed. Returns whether the tokens have. A bad file leaves those before."""
        if self._path is None:
            return False
        try:
            stamp = file_stamp(self._path)
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            self._tokens = Tokens.parse(read_file(self._path), self._tokens)
        except InvalidTokenFile as error:
            if self._stamp is not None:
                log.warning("%s is not read again, and the tokens before stay valid: %s", self._path, error)
            return False
        log.info("%s read again: %d tokens", self._path, len(self._tokens.callers))
        return True
