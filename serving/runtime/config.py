"""The settings of a server. `ServerConfig` is their only definition: the options of `tidegate serve` are made from it."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from tidegate.core.device import DEVICES
from tidegate.core.swap_policy import REWARM_STEPS_MAX, PolicyName
from tidegate.runtime.cores import usable_cores
from tidegate.runtime.host import checked, is_local, is_unix
from tidegate.runtime.model_checker import TrialLimits
from tidegate.runtime.tls_files import TlsFiles

# A store in the memory of one process.
MEMORY = "memory:"
# The hosts when none is given: all addresses of both families, or those that only this machine reaches.
ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 (only with TLS)
THIS_MACHINE = "localhost"
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class InvalidSetting(ValueError):
    """A setting has a value that it cannot have.

    Attributes:
        name: the field of `ServerConfig`.
        problem: what is wrong.

    """

    def __init__(self, name: str, value: object, problem: str) -> None:
        self.name = name
        self.problem = f"got {value!r}: {problem}"
        super().__init__(f"{name}: {self.problem}")


@dataclass(frozen=True)
class Setting:
    """The metadata of a field of `ServerConfig`: help text and bounds. A duration has its default as text too."""

    help: str
    at_least: float
    at_most: float = float("inf")
    duration: str = ""


def seconds(text: str) -> float:
    """Parses "200ms", "30s", "15m", "12h", "7d" or a plain number of seconds. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", text.strip())
    if found is None:
        raise ValueError("expected a number with a unit, such as 200ms, 30s, 15m, 12h or 7d")
    return float(found[1]) * UNITS_S[found[2] or "s"]


def setting(default: object, about: str, at_least: float = float("-inf"), at_most: float = float("inf")) -> Any:
    """A field with its default, help text and bounds."""
    return field(default=default, metadata={"setting": Setting(about, at_least, at_most)})


def duration(default: str, about: str, at_least: float = 0.0) -> Any:
    """A field in seconds, which can also be given as text with a unit."""
    return field(default=seconds(default), metadata={"setting": Setting(about, at_least, duration=default)})


@dataclass(frozen=True)
class ServerConfig:
    """The settings of `tidegate serve`. Only the server and the command line use this object.

    Raises:
        InvalidSetting: a value is not allowed.

    """

    models: Path = setting(Path("models"), "Folder of <name>/<version>/model.onnx.")  # noqa: RUF009 - a field
    load: tuple[str, ...] = setting((), "Serve only this model, NAME or NAME/VERSION; may be repeated. None: all.")
    models_poll: float = duration("5s", "How often --models is looked at for new and removed versions; 0 for never.")
    # A graph of 2 GiB cannot be read at all. Weights beside it may be larger.
    model_bytes_max: int = setting(1 << 30, "Largest size of the files of a version.", at_least=1)
    model_memory_max: int = setting(
        0, "Most memory that trying a model may take, in bytes; 0: 1 GiB and four times its files.", at_least=0
    )
    load_timeout: float = duration("60s", "Longest time that loading a model may take, and checking it.", at_least=0.1)
    step_timeout: float = duration("10s", "Longest time that one run of a model may take.", at_least=0.1)
    # Without TLS, whoever reaches the port may do everything. So other machines reach it only when that was asked for.
    host: str = setting(
        "", "Name or address to listen on, or unix:PATH. Empty: all addresses with TLS, without it only this machine."
    )
    port: int = setting(50051, "Port of gRPC; 0 picks a free one.", at_least=0, at_most=65535)
    metrics_port: int = setting(9464, "Port of /metrics; 0 picks a free one.", at_least=0, at_most=65535)
    # With a unix socket for gRPC, which is not for other machines, /metrics is on localhost.
    metrics_host: str = setting("", "Address of /metrics; empty: that of --host.")
    # What a row costs bounds most batches: see `runtime.row_cost`. Only a call that is alone has chunks of so many rows.
    batch_max: int = setting(1024, "Most timesteps in a batch.", at_least=1, at_most=4096)
    # Some milliseconds with a small model.
    queue_max: int = setting(4096, "Most timesteps waiting for a batch.", at_least=1)
    # Only existing streams use memory.
    live_max: int = setting(16384, "Most live streams of a model, in each worker.", at_least=1)
    # Less than all, so that one connection cannot take all live streams.
    peer_live_max: int = setting(
        0, "Most live streams of a model over one connection; 0: seven eighths of --live-max.", at_least=0
    )
    # Once a minute a worker learns how many streams the others have opened. Until then it may accept more.
    streams_max: int = setting(1_000_000, "Most streams, live and parked.", at_least=1)
    # Also the number of timesteps that a client may have in flight.
    answers_remembered: int = setting(32, "Answers kept of each stream for repeats.", at_least=1, at_most=4096)
    device: str = setting("cpu", "Where models run: cpu, or cuda with onnxruntime-gpu.")
    tls_cert: str = setting("", "PEM file with the certificate chain of the server; with --tls-key.")
    tls_key: str = setting("", "PEM file with the private key of --tls-cert.")
    tls_client_ca: str = setting("", "PEM file with a CA; every client then needs a certificate that it signed.")
    tokens: str = setting(
        "", "TOML file with the hashes of the tokens that get in, their tenants and limits. Empty: everybody gets in."
    )
    otlp_endpoint: str = setting(
        "", "OpenTelemetry collector that gets spans, http://HOST:PORT. Empty: as the OTEL_ variables say."
    )
    message_bytes_max: int = setting(4 * 1024 * 1024, "Longest message that is read.", at_least=1024)
    # Below the 30 s that Kubernetes waits.
    drain_after: float = duration("20s", "Longest time that stopping may take.")
    state: str = setting(
        "",
        "Where streams rest: sqlite:///PATH, redis://HOST:PORT/DB, rediss://, redis+sentinel://HOSTS/SERVICE or memory:. Empty: SQLite in --data-dir.",
    )
    data_dir: Path = setting(Path("data"), "Folder for what the server writes.")  # noqa: RUF009 - a field
    # Nobody's stream changes its version unless the operator wants it.
    swap_policy: str = setting(
        "pin", "Streams on an old version: pin, rewarm or reset; serving.toml of a model overrules it."
    )
    rewarm_steps: int = setting(64, "Timesteps kept of each stream for rewarm.", at_least=1, at_most=REWARM_STEPS_MAX)
    # What a client sends again after a crash.
    checkpoint_every: float = duration("200ms", "How often state is stored.", at_least=1e-6)
    park_after: float = duration("60s", "Silence after which an open stream leaves memory.")
    forget_after: float = duration("7d", "Silence after which a stream is forgotten; 0 for never.")
    # Both count from the time at which the state should have been stored.
    ready_lag: float = duration("5s", "Unsaved for so long: the server says it is not ready.")
    lag_max: float = duration("30s", "Unsaved for so long: new timesteps are refused.")
    # One process keeps one core busy. A thousand are far more than the disk of one machine can serve.
    workers: int = setting(0, "Processes that serve; 0: one a core that may be used.", at_least=0, at_most=1024)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            try:
                object.__setattr__(self, each.name, validated(value, each.type, each.metadata["setting"]))
            except ValueError as error:
                raise InvalidSetting(each.name, value, str(error)) from None
        if self.device not in DEVICES:
            raise InvalidSetting("device", self.device, f"expected one of {', '.join(DEVICES)}")
        self._validate_tls()
        if not self.host:
            object.__setattr__(self, "host", ALL_ADDRESSES if self.tls_cert else THIS_MACHINE)
        self._validate_hosts()
        self._validate_workers()
        if self.swap_policy not in get_args(PolicyName):
            raise InvalidSetting("swap_policy", self.swap_policy, f"expected one of {', '.join(get_args(PolicyName))}")

    @property
    def state_address(self) -> str:
        """The address of the store."""
        return self.state or f"sqlite://{(self.data_dir / 'tidegate.db').absolute()}"

    @property
    def live_max_of_a_peer(self) -> int:
        """The most live streams of a model over one connection."""
        return self.peer_live_max or self.live_max - self.live_max // 8

    @property
    def metrics_address(self) -> str:
        """The host of /metrics."""
        return self.metrics_host or ("localhost" if is_unix(self.host) else self.host)

    @property
    def worker_count(self) -> int:
        """The number of processes that serve. Memory and a unix socket belong to one process."""
        return self.workers or (1 if self.state == MEMORY or is_unix(self.host) else usable_cores())

    @property
    def trial_limits(self) -> TrialLimits:
        """What a model may take when it is tried."""
        return TrialLimits(self.batch_max, self.model_memory_max, self.load_timeout, self.step_timeout, self.device)

    @property
    def tls_files(self) -> TlsFiles | None:
        """The files for TLS; None without TLS."""
        if not self.tls_cert:
            return None
        return TlsFiles(
            Path(self.tls_cert), Path(self.tls_key), Path(self.tls_client_ca) if self.tls_client_ca else None
        )

    @property
    def exposed(self) -> bool:
        """Whether other machines may reach a port that has no TLS."""
        return not self.tls_cert and not is_local(self.host)

    @property
    def tokens_path(self) -> Path | None:
        """The token file; None when there is none."""
        return Path(self.tokens) if self.tokens else None

    def _validate_tls(self) -> None:
        needed = {"tls_cert": self.tls_key or self.tls_client_ca, "tls_key": self.tls_cert}
        for name, other in needed.items():
            if other and not getattr(self, name):
                raise InvalidSetting(name, "", "expected a PEM file: TLS needs a certificate and its key")

    def _validate_hosts(self) -> None:
        if is_unix(self.metrics_host):
            raise InvalidSetting(
                "metrics_host", self.metrics_host, "expected a name or an address: a unix socket is for gRPC only"
            )
        for name, host in {"host": self.host, "metrics_host": self.metrics_host or "localhost"}.items():
            try:
                checked(host)
            except ValueError as error:
                raise InvalidSetting(name, host, str(error)) from None

    def _validate_workers(self) -> None:
        if self.workers <= 1:
            return
        if is_unix(self.host):
            raise InvalidSetting(
                "workers",
                self.workers,
                "one process alone can listen on a unix socket; say --workers 1, or listen on an address",
            )
        if self.state == MEMORY:
            raise InvalidSetting(
                "workers",
                self.workers,
                f"each process would keep its own streams in {MEMORY}; "
                "say --workers 1, or --state sqlite:///PATH or redis://...",
            )


def validated(value: Any, kind: Any, about: Setting) -> Any:
    """Returns the value with its type and within its bounds. Raises ValueError."""
    if about.duration and isinstance(value, str):
        value = seconds(value)
    if kind in (str, Path):
        return kind(value)
    if kind == tuple[str, ...]:
        return tuple(value)
    if not value >= about.at_least:  # also NaN
        raise ValueError(f"expected at least {about.at_least:g}")
    if value > about.at_most:
        raise ValueError(f"expected at most {about.at_most:g}")
    return value
