"""`export`: a person's own module -> graph -> parity gate -> a version on disk."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from tidegate.training.data.series import Floats
from tidegate.training.errors import ModuleError, SettingsError
from tidegate.training.publishing.card import made_with
from tidegate.training.publishing.export import CONTRACT, set_description
from tidegate.training.publishing.module import Description, Feature, Output, State, Step
from tidegate.training.publishing.module_parity import check_module_parity, probe
from tidegate.training.publishing.parity import Parity
from tidegate.training.publishing.trace import TRACE_BATCH, symbolic_dimensions, trace
from tidegate.training.publishing.version import free_version, write_version
from tidegate.training.settings import NAME


@dataclass(frozen=True)
class Exported:
    """A version on disk, and how far graph and module are apart."""

    folder: Path
    parity: Parity


def export(  # noqa: PLR0913  all but the module are names
    module: nn.Module,
    *,
    name: str,
    features: Sequence[Feature | str],
    outputs: Sequence[Output],
    state: Sequence[State] = (),
    period_s: float | None = None,
    handles_missing: bool = False,
    task: str = "forecast",
    samples: npt.ArrayLike | None = None,
    models: Path | str = "models",
    version: int | None = None,
) -> Exported:
    """Write a module as a version that `tidegate serve` reads.

    The module is copied; the copy runs on the CPU, in float32, and as for evaluation. It must have a method
    `step(x, state) -> (outputs, next_state)` that computes one timestep of a batch of streams:

        x: [batch, features] float32 in raw units.
        state: a tuple of tensors in the order of `state`; that of a new stream has its initial value.
        outputs: a tensor, several in the order of `outputs`, or a dictionary by name; the batch is the first axis.
        next_state: the tensors that replace `state`, of the same shapes.

    Before anything is written, graph and module run 1,000 timesteps beside each other, alone and in a batch of 7.

    Args:
        module: the network, with its trained weights.
        name: of the model, and of its folder.
        features: the columns of x; a text is the name of one without a unit.
        outputs: what a step gives.
        state: what a step takes and replaces; none for a network without memory.
        period_s: seconds between two timesteps; None if they are irregular.
        handles_missing: whether x may hold NaN. Without it the server refuses a timestep with a missing value.
        task: what the outputs are, for people.
        samples: (rows, features) of real timesteps, for the comparison and for the ranges of features; else the inputs are noise.
        models: the folder of models.
        version: to write; by default the next free one.

    Raises:
        SettingsError: the description cannot be.
        ModuleError: the module is not what the description says, or cannot be exported.
        ParityError: graph and module differ; nothing is written.
        VersionExists: the version is on disk already.
    """
    rows = None if samples is None else _sample_rows(samples, len(features), handles_missing=handles_missing)
    described = _with_ranges(features, rows)
    description = Description(tuple(described), tuple(outputs), tuple(state))
    _check_settings(name, period_s)
    description.check()
    free = free_version(Path(models), name, version)
    step = Step(module, description)
    model = _trace(step)
    contract = _contract(step, model, task=task, period_s=period_s, handles_missing=handles_missing)
    set_description(model, contract)
    onnx.checker.check_model(model, full_check=True)
    parity = check_module_parity(step, model, probe(step, rows, missing=handles_missing))
    content = model.SerializeToString()
    card = _card(step, contract, parity, content) | {"name": name, "version": free}
    return Exported(write_version(Path(models), name, free, content, card, report=None), parity)


def _trace(step: Step) -> onnx.ModelProto:
    """The graph of a step, without its description.

    Raises:
        ModuleError: torch cannot export the module, or only for one size of batch.
    """
    state = step.description.state
    try:
        model = trace(
            step,
            torch.zeros(TRACE_BATCH, len(step.description.features)),
            step.initial_state(TRACE_BATCH),
            batch_axes=[part.batch_axis for part in state],
            outputs=[part.name for part in step.description.outputs],
            states=[part.name for part in state],
        )
    except Exception as error:  # torch wraps whatever it meets
        raise ModuleError(
            f"module: torch cannot export {step.title}.step: {_reason(error)}; it must be one computation for any batch, "
            f"without Python decisions on values or on the size of the batch"
        ) from error
    for tensor, symbolic in symbolic_dimensions(model).items():
        if symbolic != ["batch"]:
            raise ModuleError(
                f"module: {tensor!r} of {step.title} has the symbolic sizes {symbolic} in the graph, expected the batch "
                f"alone; do not fix the size of the batch in the step"
            )
    return model


def _reason(error: BaseException) -> str:
    """The first line of what began it; torch raises further errors on top, which are long."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _contract(
    step: Step, model: onnx.ModelProto, *, task: str, period_s: float | None, handles_missing: bool
) -> dict[str, Any]:
    """The description of the model contract, see docs/model.md."""
    shapes = {
        value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in model.graph.output
    }
    described = step.description
    return {
        "contract": CONTRACT,
        "task": task,
        "cell": step.title,
        "period_s": period_s,
        "handles_missing": handles_missing,
        "features": [asdict(feature) for feature in described.features],
        "outputs": [
            {
                "name": part.name,
                "shape": shapes[part.name],
                "targets": list(part.targets),
                "units": list(part.units or [""] * len(part.targets)),
                "horizons": list(part.horizons),
                "quantiles": list(part.quantiles),
            }
            for part in described.outputs
        ],
        "state": [
            {"name": part.name, "next": f"{part.name}_next", "shape": list(part.shape)} | _initial(part)
            for part in described.state
        ],
        "scores": {},
    }


def _initial(part: State) -> dict[str, Any]:
    """The value of a new stream; left out where it is 0."""
    values = np.asarray(part.initial, np.float64)
    return {"initial": values.flatten().tolist() if values.ndim else float(values)} if values.any() else {}


def _card(step: Step, contract: dict[str, Any], parity: Parity, content: bytes) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": hashlib.sha256(content).hexdigest(),
        "description": contract,
        "parameters": sum(weight.numel() for weight in step.parameters()),
        "parity": asdict(parity),
        "made_with": made_with(),
        "features": contract["features"],
        "scores": {},
    }


def _sample_rows(samples: npt.ArrayLike, features: int, *, handles_missing: bool) -> Floats:
    """(rows, features) float32.

    Raises:
        SettingsError: they have another shape, or hold what x must not hold.
    """
    rows = np.asarray(samples, np.float32)
    if rows.ndim != 2 or rows.shape[1] != features or not len(rows):
        raise SettingsError(f"samples: got shape {rows.shape}, expected (rows, {features}), a column for each feature")
    bad = np.isinf(rows) if handles_missing else ~np.isfinite(rows)
    if bad.any():
        row, column = (int(place) for place in np.argwhere(bad)[0])
        raise SettingsError(
            f"samples: got {rows[row, column]} in row {row}, column {column}, expected "
            f"{'a number or NaN' if handles_missing else 'a number; handles_missing=True allows NaN'}"
        )
    return rows


def _with_ranges(features: Sequence[Feature | str], rows: Floats | None) -> list[Feature]:
    """The features, those without a range with that of their samples."""
    described = [Feature(part) if isinstance(part, str) else part for part in features]
    if rows is None:
        return described
    for index, feature in enumerate(described):
        known = rows[:, index][~np.isnan(rows[:, index])]
        if feature.low is None and feature.high is None and len(known):
            described[index] = replace(feature, low=float(str(known.min())), high=float(str(known.max())))
    return described


def _check_settings(name: str, period_s: float | None) -> None:
    if not re.fullmatch(NAME, name):
        raise SettingsError(
            f"name: got {name!r}, expected letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    if period_s is not None and not (np.isfinite(period_s) and period_s > 0):
        raise SettingsError(f"period_s: got {period_s}, expected seconds above 0, or None")
