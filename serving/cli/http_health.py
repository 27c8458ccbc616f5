"""Asks a server on this machine over HTTP how it is, as the health check of a container does."""

import urllib.error
import urllib.request
from collections.abc import Mapping

from tidegate.cli.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from tidegate.runtime.host import WILDCARDS, is_unix, with_port

DEFAULT_PORT = 9464


def ask_health(environment: Mapping[str, str], timeout_s: float) -> str:
    """The answer of /healthz of the server that was started with the same TIDEGATE_ variables.

    Raises CommandError when it is not healthy or does not answer, or the port is no number.
    """
    host = environment.get("TIDEGATE_METRICS_HOST") or environment.get("TIDEGATE_HOST", "")
    local = not host or host in WILDCARDS or is_unix(host)
    port = environment.get("TIDEGATE_METRICS_PORT") or str(DEFAULT_PORT)
    if not port.isdecimal():
        raise CommandError(f"TIDEGATE_METRICS_PORT: got '{port}', expected a number from 0 to 65535", EXIT_USAGE)
    url = f"http://{with_port('localhost' if local else host, int(port))}/healthz"
    # Without a proxy: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as answer:
            return str(answer.read(100), "utf-8", "replace").strip()
    except (OSError, urllib.error.HTTPError) as error:
        raise CommandError(f"{url} is not healthy: {error}", EXIT_FAILURE) from None
