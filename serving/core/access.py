"""Who calls, and how much a tenant may do."""

import math
from dataclasses import dataclass, field

# The tenant of all callers while there is no token file.
DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """The limits of a tenant at one worker; infinity means none.

    `streams_max` counts live and parked streams, and is the same for all workers; the others are for each worker.
    """

    streams_max: float = math.inf
    live_max: float = math.inf
    opens_per_second: float = math.inf
    steps_per_second: float = math.inf


class TokenBucket:
    """A rate limit: `rate` a second on average, and up to a second's worth at once. It starts full.

    The caller tells the time, in seconds on a monotonic clock.
    """

    def __init__(self, rate: float) -> None:
        assert rate > 0
        self.rate = rate
        self._left = max(rate, 1.0)
        self._at = -math.inf

    def take(self, count: int, now: float) -> float:
        """Takes `count` if anything is left, and returns 0; else takes nothing and returns the seconds to wait.

        More than a second's worth may be taken at once: the debt is paid before anything is taken again. So a large
        message is never refused for ever.
        """
        if math.isinf(self.rate):
            return 0.0
        self._left = min(max(self.rate, 1.0), self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left <= 0:
            return (1.0 - self._left) / self.rate
        self._left -= count
        return 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Tenant:
    """A tenant and what it has used of its rates."""

    name: str
    limits: TenantLimits = field(default_factory=TenantLimits)
    opens: TokenBucket = field(init=False)
    steps: TokenBucket = field(init=False)
    limits_steps: bool = field(init=False)
    """Whether timesteps must be counted."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "opens", TokenBucket(self.limits.opens_per_second))
        object.__setattr__(self, "steps", TokenBucket(self.limits.steps_per_second))
        object.__setattr__(self, "limits_steps", not math.isinf(self.limits.steps_per_second))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call: a tenant, by a token. `admin` allows the administration of models.

    `token_sha256` is empty while there is no token file.
    """

    tenant: Tenant
    admin: bool
    token_sha256: str = ""
