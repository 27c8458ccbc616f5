"""Writes what is in the image as a CycloneDX SBOM: its Python packages, Python itself, and the packages of the base image.

python sbom.py PYTHON OUT REPORT WHEEL, with the Python whose packages are listed, what `pip install --report` wrote of
those that were downloaded, and the wheel that was built here. The same packages give the same bytes.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

# How dpkg lists the packages of the base image: a line each, with a tab between the fields.
DEBIAN_FIELDS = "${Package}\t${Version}\t${Architecture}\n"


def main(python: str, out: Path, report: Path, wheel: Path) -> None:
    """Writes the SBOM."""
    # Reproducible: it has no random identity, and no time but that of SOURCE_DATE_EPOCH.
    made = subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", python],
        stdout=subprocess.PIPE,
        check=True,
    )
    bom = json.loads(made.stdout)
    downloads = {
        normalized(each["metadata"]["name"]): each for each in json.loads(report.read_text("utf-8"))["install"]
    }
    for component in bom["components"]:
        download = downloads.get(normalized(component["name"]))
        if download is not None:
            component["hashes"] = sha256(download["download_info"]["archive_info"]["hashes"]["sha256"])
            # A licence in words of its own, which the generator leaves out.
            if "licenses" not in component and (words := download["metadata"].get("license")):
                component["licenses"] = [{"license": {"name": words}}]
        elif component["name"] == "tidegate":
            component["hashes"] = sha256(hashlib.sha256(wheel.read_bytes()).hexdigest())
            bom["metadata"]["component"] = {
                "bom-ref": "image",
                "type": "container",
                "name": "tidegate",
                "version": component["version"],
            }
    bom["components"] += [python_itself(python), *debian_packages()]
    out.write_text(json.dumps(bom, indent=1, sort_keys=True) + "\n", "utf-8")


def sha256(digest: str) -> list[dict[str, str]]:
    """A hash as CycloneDX writes it."""
    return [{"alg": "SHA-256", "content": digest}]


def python_itself(python: str) -> dict[str, Any]:
    """The interpreter: in the official images it is no package."""
    program = "import platform; print(platform.python_version())"
    version = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    entry = component_entry("application", "python", version, f"pkg:generic/python@{version}")
    return entry | {"licenses": [{"license": {"id": "PSF-2.0"}}]}


def debian_packages() -> list[dict[str, Any]]:
    """The packages of the base image."""
    listed = subprocess.run(["dpkg-query", "-W", "-f", DEBIAN_FIELDS], capture_output=True, text=True, check=True)
    packages = [line.split("\t") for line in listed.stdout.splitlines()]
    return [
        component_entry(
            "library", name, version, f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}"
        )
        for name, version, architecture in packages
    ]


def component_entry(kind: str, name: str, version: str, purl: str) -> dict[str, Any]:
    """An entry of the list."""
    return {"bom-ref": purl, "type": kind, "name": name, "version": version, "purl": purl}


def normalized(name: str) -> str:
    """The name of a package as indexes compare it."""
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:5]))
