"""Compares the files that two builds of the image have put into it: python -m tests.image.files IMAGE IMAGE.

Names, kinds, modes, owners, times of change and SHA-256 must be equal. The base image is not looked at.
"""

import json
import sys

from tests.image.container import run_in

# What our Dockerfile makes: a line of JSON for each file. The bytecode of the standard library is ours too, where the base has none.
PROGRAM = """
import hashlib, json, os, stat, sysconfig
roots = ["/opt/tidegate", "/models", "/data", "/sbom.cdx.json", sysconfig.get_path("stdlib")]
found = {}
for root in roots:
    paths = [root, *(os.path.join(at, name) for at, folders, files in os.walk(root) for name in folders + files)]
    for path in paths:
        info = os.lstat(path)
        content = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
        if stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(open(path, "rb").read()).hexdigest()
        # An engine makes the folder that it copies into, and gives it the time of the build.
        time = int(info.st_mtime) if root != roots[-1] and path != root else 0
        found[path] = [oct(info.st_mode), info.st_uid, info.st_gid, info.st_size, content, time]
print(json.dumps(found))
"""


def files(image: str) -> dict[str, list[object]]:
    """What is known of each file, by its path."""
    done = run_in(image, "python", ["-c", PROGRAM])
    assert done.returncode == 0, done.stderr
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


def differences(one: dict[str, list[object]], other: dict[str, list[object]]) -> list[str]:
    """A line for each file that differs."""
    return [
        f"{path}: {one.get(path)} {other.get(path)}"
        for path in sorted({*one, *other})
        if one.get(path) != other.get(path)
    ]


def main(one: str, other: str) -> int:
    """Prints how two images differ. Returns the exit code."""
    found = files(one)
    different = differences(found, files(other))
    print("\n".join(different[:20]) or f"{len(found)} files are equal")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
