"""The Helm chart: helm accepts it, Kubernetes accepts what it renders, and the real Envoy accepts its configuration."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.chart import CHART, RELEASE, deploy_tool, helm, render
from tests.deploy.test_replicas import envoy_configuration
from tests.timeouts import TIMEOUT_S

# The oldest version that has the `sleep` action as a matter of course, and the newest that the schemas know.
KUBERNETES = ("1.30", "1.36")
# Monitors and rules are not part of Kubernetes, so its schemas do not know them.
SETTINGS = {
    "default": (),
    "everything": (
        "autoscaling.enabled=true",
        "models.existingClaim=models",
        "networkPolicy.clients[0].podSelector.matchLabels.app=gateway",
        "env.TIDEGATE_CHECKPOINT_EVERY=100ms",
    ),
    "sentinels": ("valkey.enabled=false", "store.url=rediss+sentinel://a\\,b\\,c/main?ca=/ca.pem"),
    "outside-store": ("valkey.enabled=false", "store.existingSecret=redis", "envoy.enabled=false"),
}


def test_helm_finds_no_fault() -> None:
    """`helm lint --strict` passes."""
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_kubernetes_accepts_the_manifests(tmp_path: Path, settings: tuple[str, ...], version: str) -> None:
    """Each manifest has the fields of its schema and no others."""
    path = tmp_path / "manifests.yaml"
    path.write_text(render(*settings), "utf-8")
    command = [deploy_tool("kubernetes-validate"), "--strict", "-k", version, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("valkey.enabled=false",), "streams need a store"),
        (("store.url=redis://other:6379",), "two stores are named"),
        (("store.url=http://other",), "does not match pattern"),
        (("store.url=redis+cluster://other",), "does not match pattern"),
        (("replica=3",), "replica"),
    ],
    ids=["no-store", "two-stores", "wrong-store", "cluster", "misspelt"],
)
def test_wrong_values_are_refused(settings: tuple[str, ...], message: str) -> None:
    """With what is wrong."""
    done = helm("template", RELEASE, str(CHART), *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode != 0
    assert message in done.stderr


def test_every_container_is_restricted() -> None:
    """None runs as root, writes to its root file system, gains privileges or keeps a capability."""
    manifests = render(*SETTINGS["everything"])
    containers = len(re.findall(r"^ +image: ", manifests, re.MULTILINE))
    assert containers == 3
    for line in ("allowPrivilegeEscalation: false", "readOnlyRootFilesystem: true", "capabilities: {drop: [ALL]}"):
        assert manifests.count(line) == containers
    for line in ("runAsNonRoot: true", "seccompProfile: {type: RuntimeDefault}", "automountServiceAccountToken: false"):
        assert manifests.count(line) == 3


def test_the_rules_are_those_of_prometheus() -> None:
    """The chart's rules are the file that promtool tests."""
    manifests = render("prometheusRule.enabled=true", "serviceMonitor.enabled=true")
    assert "kind: PrometheusRule" in manifests
    assert "kind: ServiceMonitor" in manifests
    assert "alert: TidegateStateLost" in manifests


def test_envoy_accepts_its_configuration(tmp_path: Path) -> None:
    """The real Envoy finds no fault in it."""
    path = tmp_path / "envoy.yaml"
    path.write_text(envoy_configuration(0, 50051, 53), "utf-8")
    command = [deploy_tool("envoy"), "--mode", "validate", "-c", str(path), "--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
