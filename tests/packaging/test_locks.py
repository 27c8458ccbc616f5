"""The lock files of the image agree with the one that the tests use."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.root import ROOT

IMAGE = ROOT / "deploy" / "image"
# Name, version, and the hashes of its files.
PINNED = re.compile(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def normalized(name: str) -> str:
    """The name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """The versions of a lock file with hashes, every line of which must be a version or a hash."""
    text = path.read_text("utf-8")
    found = {normalized(name): version for name, version, _ in PINNED.findall(text)}
    assert PINNED.sub("", text).strip() == ""
    return found


def versions_of_tests() -> dict[str, str]:
    """The versions that the tests use."""
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    return {normalized(name): version for name, version in (line.split("==") for line in lines if line[0] != "#")}


@pytest.mark.parametrize("name", ["server.lock", "build.lock"])
def test_the_image_has_the_versions_of_the_tests(name: str) -> None:
    """A package in both lock files has one version; every version of the image has hashes."""
    versions, known = pins(IMAGE / name), versions_of_tests()
    assert {each: versions[each] for each in versions if each in known and known[each] != versions[each]} == {}
    if name == "server.lock":
        assert not versions.keys() - known.keys()


def test_the_lock_of_the_image_has_all_that_a_server_needs() -> None:
    """Each dependency of the package and of its extras `server` and `redis`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["server"], *extras["redis"]]
    names = {normalized(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in needed}
    assert names <= pins(IMAGE / "server.lock").keys()
    assert {"setuptools", "cyclonedx-bom"} <= pins(IMAGE / "build.lock").keys()
