"""The environment variables that begin with TIDEGATE_."""

from pathlib import Path

import pytest
import typer.main

from tests.servers import run_command
from tidegate.cli import app as cli
from tidegate.cli.variables import known_variables, mistakes, service_ports


@pytest.fixture(scope="module")
def known() -> list[str]:
    """Those of all options."""
    return [*known_variables(typer.main.get_command(cli.app))]


def test_the_variables_of_all_commands_are_known(known: list[str]) -> None:
    """Also of commands in groups, and of those that are no setting of a server."""
    assert {"TIDEGATE_BATCH_MAX", "TIDEGATE_LOG_LEVEL", "TIDEGATE_CONFIG", "TIDEGATE_ADDRESS"} <= {*known}
    assert "TIDEGATE_PREFIX" in known
    assert mistakes(dict.fromkeys(known, "1"), known) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TIDEGATE_BATCHMAX", "TIDEGATE_BATCH_MAX"),
        ("TIDEGATE_DATADIR", "TIDEGATE_DATA_DIR"),
        ("TIDEGATE_PARK_AFTR", "TIDEGATE_PARK_AFTER"),
        ("TIDEGATE_METRIC_PORT", "TIDEGATE_METRICS_PORT"),
    ],
)
def test_a_misspelt_variable_is_told(known: list[str], name: str, meant: str) -> None:
    """With the name that was meant."""
    assert mistakes({name: "1", "PATH": "/bin"}, known) == [
        f"the environment variable {name} is no setting of a server, and has no effect here; did you mean {meant}?"
    ]


def test_a_variable_that_resembles_none_is_told(known: list[str]) -> None:
    """Without a guess."""
    assert mistakes({"TIDEGATE_COLOUR_OF_THE_SEA": "1"}, known) == [
        "the environment variable TIDEGATE_COLOUR_OF_THE_SEA is no setting of a server, and has no effect here"
    ]


# As a pod gets them for two services, `tidegate` and `tidegate-metrics`.
OF_SERVICES = {
    "TIDEGATE_SERVICE_HOST": "10.0.0.1",
    "TIDEGATE_SERVICE_PORT": "50051",
    "TIDEGATE_SERVICE_PORT_GRPC": "50051",
    "TIDEGATE_PORT": "tcp://10.0.0.1:50051",
    "TIDEGATE_PORT_50051_TCP": "tcp://10.0.0.1:50051",
    "TIDEGATE_PORT_50051_TCP_PROTO": "tcp",
    "TIDEGATE_PORT_50051_TCP_PORT": "50051",
    "TIDEGATE_PORT_50051_TCP_ADDR": "10.0.0.1",
    "TIDEGATE_METRICS_SERVICE_HOST": "10.0.0.2",
    "TIDEGATE_METRICS_SERVICE_PORT": "9464",
    "TIDEGATE_METRICS_PORT": "tcp://10.0.0.2:9464",
    "TIDEGATE_METRICS_PORT_9464_TCP_ADDR": "10.0.0.2",
}


def test_the_variables_of_kubernetes_are_no_mistakes(known: list[str]) -> None:
    """Nobody has written them."""
    assert mistakes(OF_SERVICES, known) == []


def test_the_address_of_a_service_is_not_a_port() -> None:
    """It has the name of a setting."""
    assert {"TIDEGATE_PORT", "TIDEGATE_METRICS_PORT"} <= {*service_ports(OF_SERVICES)}
    assert service_ports({"TIDEGATE_PORT": "50051", "OTHER_PORT": "tcp://10.0.0.1:1"}) == []


def test_a_server_tells_a_misspelt_variable(sum_root: Path) -> None:
    """In its log, and starts, also among the variables of services."""
    ended = run_command("serve", "--check", "--models", str(sum_root), TIDEGATE_BATCHMAX="1", **OF_SERVICES)
    assert ended.returncode == 0, ended.stderr
    assert [line.split(" WARNING ")[1] for line in ended.stderr.splitlines() if " WARNING " in line] == [
        (
            "tidegate.cli: the environment variable TIDEGATE_BATCHMAX is no setting of a server, and has no effect here; "
            "did you mean TIDEGATE_BATCH_MAX?"
        )
    ]
