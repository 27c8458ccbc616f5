"""What is in the image: its size, its SBOM, and that nothing of the build is left in it."""

import json
import re

import pytest

from tests.image.container import IMAGE, ask, has_image, inspect_image, run_in
from tests.image.files import files
from tests.root import ROOT

pytestmark = pytest.mark.skipif(not IMAGE, reason="`make test-image` sets TIDEGATE_IMAGE to the image that is tried")

BYTES_MAX = 300_000_000
# The official base image, uncompressed, with room for it to grow; and the bytecode of the standard library, which only
# the official image lacks. What stands in for it where no image can be pulled is larger, and is no part of ours.
BASE_BYTES = 125_000_000
BYTECODE_BYTES = 12_000_000
STAND_IN = "localhost/python:3.13-slim-trixie"
OURS = ("/opt/tidegate/", "/models/", "/sbom.cdx.json")
PACKAGES = """
import importlib.metadata, json, subprocess
found = {each.name: each.version for each in importlib.metadata.distributions()}
listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\n"], capture_output=True, text=True, check=True)
found.update(line.split("\\t") for line in listed.stdout.splitlines())
print(json.dumps(found))
"""


def test_the_image_is_under_300_mb() -> None:
    """With the official base image."""
    ours = sum(int(str(facts[3])) for path, facts in files(IMAGE).items() if path.startswith(OURS))
    assert 0 < ours + BASE_BYTES + BYTECODE_BYTES < BYTES_MAX
    if not has_image(STAND_IN):
        assert inspect_image(IMAGE)["Size"] < BYTES_MAX


def test_the_sbom_names_each_package_with_version_licence_and_hash() -> None:
    """Each Python package and each package of the base image; hashes are those of the lock file."""
    bom = json.loads(run_in(IMAGE, "cat", ["/sbom.cdx.json"]).stdout)
    named = {each["name"]: each for each in bom["components"]}
    assert {name: each["version"] for name, each in named.items() if name != "python"} == ask(PACKAGES)
    locked = set(re.findall(r"sha256:([0-9a-f]{64})", (ROOT / "deploy/image/server.lock").read_text("utf-8")))
    for each in (each for each in named.values() if each["purl"].startswith("pkg:pypi/")):
        assert each["licenses"], each["name"]
        (digest,) = each["hashes"]
        assert digest["content"] in locked or each["name"] == "tidegate", each["name"]
    assert bom["metadata"]["component"]["name"] == "tidegate"
    assert "serialNumber" not in bom  # it would be another one at each build


def test_nothing_of_the_build_is_left() -> None:
    """No pip, no compiler, no path of the build; bytecode that holds no time, for every module of the package."""
    found = files(IMAGE)
    packages = [path for path in found if path.startswith("/opt/tidegate/lib")]
    assert not [path for path in packages if re.search(r"/(pip|setuptools|torch|onnx)(-|/|$)", path)]
    assert not [path for path in packages if path.endswith("direct_url.json")]
    times = ask(
        "import glob, json; print(json.dumps([path for path in glob.glob('/opt/tidegate/lib/**/*.pyc', recursive=True)"
        " if open(path, 'rb').read(8)[4:] != bytes([1, 0, 0, 0])]))"
    )
    assert times == []
    compiled = {path for path in packages if path.endswith(".pyc") and "/site-packages/tidegate/" in path}
    sources = {path for path in packages if path.endswith(".py") and "/site-packages/tidegate/" in path}
    assert len(compiled) == len(sources) > 100
