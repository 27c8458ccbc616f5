"""Who calls, in tests of parts of the server."""

from tidegate.core.access import Caller, Tenant
from tidegate.runtime.access import Access

ANYBODY = Caller(Tenant("default"), admin=True)
ANYBODY_GETS_IN = Access(None, count=lambda _: None)
