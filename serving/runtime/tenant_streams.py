"""How many streams each tenant has, for tenants that have a limit."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from tidegate.core.access import TenantLimits
from tidegate.core.errors import TooManyStreams
from tidegate.store import ScanFilter, Store

# After how many seconds the store is asked again, as other servers create streams of the tenant too. It is asked sooner for
# a tenant at its limit, whose streams may have been deleted.
RECOUNT_SECONDS = 60.0
RECOUNT_AT_LIMIT_SECONDS = 1.0
PAGE = 1000
RETRY_AFTER_MS = 1000


@dataclass(slots=True)
class _Count:
    streams: int
    at: float


class TenantStreams:
    """Counts the known streams of tenants with a limit.

    Args:
        store: where the streams are.
        limits_of: the limits of a tenant.

    """

    def __init__(self, store: Store, limits_of: Callable[[str], TenantLimits]) -> None:
        self._store = store
        self._limits_of = limits_of
        self._counts: dict[str, _Count] = {}

    def check_live(self, tenant: str, live: int) -> None:
        """Raises TooManyStreams when a tenant with so many live streams may not have one more at this worker."""
        limit = self._limits_of(tenant).live_max
        if live >= limit:
            raise TooManyStreams("live", int(limit), RETRY_AFTER_MS, holder="the tenant")

    async def add(self, tenant: str) -> None:
        """Counts a stream that is about to be created; a later count of the store corrects it when that fails.

        Raises TooManyStreams when the tenant may not have one more.
        """
        limit = self._limits_of(tenant).streams_max
        if limit == float("inf"):
            return
        count = self._counts.get(tenant)
        if count is None or monotonic() - count.at > (
            RECOUNT_AT_LIMIT_SECONDS if count.streams >= limit else RECOUNT_SECONDS
        ):
            count = self._counts[tenant] = _Count(await self._count(tenant, int(limit)), monotonic())
        if count.streams >= limit:
            raise TooManyStreams("known", int(limit), RETRY_AFTER_MS, holder="the tenant")
        count.streams += 1

    async def _count(self, tenant: str, at_most: int) -> int:
        """The streams of a tenant in the store; it stops counting at `at_most`."""
        found = 0
        following: str | None = ""
        while following is not None and found < at_most:
            page, following = await self._store.scan(ScanFilter(tenant), following, min(PAGE, at_most - found))
            found += len(page)
        return found
