"""The environment variables that begin with TIDEGATE_: which are settings, and which Kubernetes has made."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

from typer.core import TyperCommand, TyperGroup, TyperOption

from tidegate.runtime.crash_points import VARIABLE

PREFIX = "TIDEGATE_"
# Read without being the variable of an option: for tests, and by the training commands.
OTHERS = (VARIABLE, "TIDEGATE_CACHE", "TIDEGATE_REQUIRE_ALL")
# For each service in a container's namespace, Kubernetes sets variables there that begin with the service's name: for
# `tidegate` and `tidegate-redis` these look like ours.
OF_A_SERVICE = re.compile(r"TIDEGATE(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
# The value of NAME_PORT for such a service.
SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


def is_of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes has set a variable for a service."""
    return bool(OF_A_SERVICE.fullmatch(name) or (name.endswith("_PORT") and SERVICE_URL.match(value)))


def service_ports(environment: Mapping[str, str]) -> list[str]:
    """The variables of services that have the name of a setting, such as TIDEGATE_PORT=tcp://10.0.0.1:50051."""
    return [name for name, value in environment.items() if name.startswith(PREFIX) and SERVICE_URL.match(value)]


def known_variables(command: object) -> Iterator[str]:
    """The variables of all options of a command, and of the commands below it."""
    if isinstance(command, TyperGroup):
        for each in command.commands.values():
            yield from known_variables(each)
    if isinstance(command, TyperGroup | TyperCommand):
        for option in command.params:
            if isinstance(option, TyperOption) and isinstance(option.envvar, str):
                yield option.envvar


def mistakes(environment: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """A sentence for each variable that looks like a setting and is not one."""
    names = {*known, *OTHERS}
    found = []
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name in names or is_of_a_service(name, value):
            continue
        close = difflib.get_close_matches(name, sorted(names - {VARIABLE}), 1, cutoff=0.75)
        hint = f"; did you mean {close[0]}?" if close else ""
        found.append(f"the environment variable {name} is no setting of a server, and has no effect here{hint}")
    return found
