"""The fingerprint of a model whose description is not in its graph: a hash of its files and of what is described.

The description counts as the `Spec` that it gives, so the order of keys, comments and defaults do not matter.
"""

import hashlib
import json

import numpy as np

from tidegate.core.spec import Array, Output, Spec


def fingerprint(files: str, spec: Spec) -> str:
    """A SHA-256 in hex of the files, whose own hash is `files`, and of everything that the spec says but its name."""
    content = {
        "files": files,
        "task": spec.task,
        "period_s": spec.period_s,
        "handles_missing": spec.handles_missing,
        "features": [[part.name, part.unit, part.low, part.high] for part in spec.features],
        "inputs": [
            [part.name, part.dtype.str, part.shape, part.batch_axis, part.kind, part.window, part.window_axis]
            for part in spec.inputs
        ],
        "constants": [[part.name, part.batch_axis, *_content(part.value)] for part in spec.constants],
        "outputs": [[part.name, part.dtype.str, part.shape, part.batch_axis, *_axes(part)] for part in spec.outputs],
        "state": [
            [part.name, part.next_name, part.batch_axis, part.finite, *_content(part.initial)] for part in spec.state
        ],
    }
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _axes(part: Output) -> list[object]:
    """What the axes of an output mean."""
    return [part.targets, part.units, part.horizons, part.quantiles]


def _content(value: Array) -> list[object]:
    """The dtype, the shape and the hash of an array."""
    return [value.dtype.str, value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
