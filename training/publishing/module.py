"""A `torch.nn.Module` of any kind as a version on disk: a person's own network, trained elsewhere.

The module computes one timestep, `step(x, state) -> (outputs, next_state)`. What it cannot say itself stands in a
description: `Feature`, `Output` and `State`. This module checks one against the other, on a few rows, before the export.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tidegate.training.errors import ModuleError, SettingsError

# The types that a server keeps as state, see docs/model.md.
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "int32", "int64", "bool")}
# Rows of the first steps, which find mistakes in the description. One row is not told from a fixed size.
CHECKED_ROWS = 3

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Feature:
    """One column of a timestep: its name, its unit, and the range seen in training, if known."""

    name: str
    unit: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Output:
    """One tensor that a step gives, [batch, ...], and the meaning of its axes.

    A forecast is [batch, horizons, targets], its quantiles [batch, horizons, targets, quantiles]; probabilities are
    [batch, targets], where the targets are the classes. An output without axes has any shape.

    Attributes:
        name: "forecast", "quantiles" and "probability" are those that `tidegate evaluate` and clients know.
        targets: names of what is forecast, or of the classes.
        units: of the targets; none, or one for each.
        horizons: in timesteps.
        quantiles: levels between 0 and 1.
    """

    name: str
    targets: Sequence[str] = ()
    units: Sequence[str] = ()
    horizons: Sequence[int] = ()
    quantiles: Sequence[float] = ()

    @property
    def axes(self) -> list[int]:
        """The lengths of the axes after the batch, as far as they are described."""
        return [len(part) for part in (self.horizons, self.targets, self.quantiles) if len(part)]


@dataclass(frozen=True)
class State:
    """One tensor that a step takes and replaces.

    Attributes:
        name: of the input; the output that replaces it gets the ending `_next`.
        shape: with the word "batch" at the place of the batch: (1, "batch", 64) for `h` of an `nn.LSTM` with one layer.
        initial: the value of a new stream, one number or one for each element.
        dtype: "float32", "float64", "int32", "int64" or "bool".
    """

    name: str
    shape: Sequence[int | str]
    initial: float | Sequence[float] = 0.0
    dtype: str = "float32"

    @property
    def batch_axis(self) -> int:
        """The axis of the batch."""
        return list(self.shape).index("batch")

    def of_new_streams(self, batch: int) -> Tensor:
        """The state of `batch` streams that have not seen a timestep."""
        sizes = [1 if size == "batch" else cast(int, size) for size in self.shape]
        row = torch.as_tensor(self.initial, dtype=DTYPES[self.dtype])
        one = row.expand(sizes) if row.ndim == 0 else row.reshape(sizes)
        return one.repeat_interleave(batch, dim=self.batch_axis)


@dataclass(frozen=True)
class Description:
    """What goes into a step and comes out of it."""

    features: tuple[Feature, ...]
    outputs: tuple[Output, ...]
    state: tuple[State, ...]

    def check(self) -> None:
        """Check the names and shapes.

        Raises:
            SettingsError: a name is empty or taken, or a shape or an initial value cannot be.
        """
        if not self.features or not self.outputs:
            raise SettingsError("features, outputs: got none, expected at least one of each")
        tensors = [*(part.name for part in self.outputs), *(part.name for part in self.state)]
        _check_names("features", [part.name for part in self.features])
        _check_names("outputs, state", ["x", *tensors, *(f"{part.name}_next" for part in self.state)])
        for output in self.outputs:
            if len(output.units) not in (0, len(output.targets)):
                raise SettingsError(
                    f"outputs: {output.name!r} has {len(output.units)} units for {len(output.targets)} targets, expected "
                    f"one for each or none"
                )
        for part in self.state:
            _check_state(part)


class Step(nn.Module):
    """One step of a module in the form that is traced and compared: names, plain tuples, and checked shapes.

    Args:
        module: with `step(x, state)`; it is copied, put on the CPU in float32, and set to evaluate.
        description: of its step.

    Raises:
        ModuleError: it has no `step`, cannot be copied, or its step does not do what the description says.
    """

    def __init__(self, module: nn.Module, description: Description) -> None:
        super().__init__()
        if not isinstance(module, nn.Module) or not callable(getattr(module, "step", None)):
            raise ModuleError(
                f"module: got {type(module).__name__}, expected a torch.nn.Module with a method "
                f"step(x, state) -> (outputs, next_state)"
            )
        self.title = type(module).__name__
        self.description = description
        try:
            self.module = deepcopy(module).cpu().float().eval()
        except RuntimeError as error:
            raise ModuleError(
                f"module: {self.title} cannot be copied: {_first_line(error)}; keep no tensor of a training as an "
                f"attribute, the state comes in and goes out through step"
            ) from error
        self.eval()
        self._check()

    def initial_state(self, batch: int) -> Tensors:
        """The state of streams that have not seen a timestep."""
        return tuple(part.of_new_streams(batch) for part in self.description.state)

    def step(self, x: Tensor, state: Tensors) -> tuple[Tensors, Tensors]:
        """(batch, features) and the state -> the outputs and the next state, in the order of the description.

        Raises:
            ModuleError: the step gives something else.
        """
        answer = self.module.step(x, state)  # type: ignore[operator]  # a method, see above
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ModuleError(f"step: {self.title} gives {_kind(answer)}, expected the pair (outputs, next_state)")
        outputs, after = answer
        return (
            self._tensors("outputs", outputs, [part.name for part in self.description.outputs]),
            self._tensors("next_state", after, [part.name for part in self.description.state]),
        )

    def forward(self, x: Tensor, *state: Tensor) -> Tensors:
        """One step with all results in a row: what the exporter traces."""
        outputs, after = self.step(x, state)
        return *outputs, *after

    def _tensors(self, what: str, got: Any, names: Sequence[str]) -> Tensors:
        """The tensors that a step gives: one alone, several in order, or a dictionary by name."""
        if isinstance(got, dict) and set(got) == set(names):
            got = [got[name] for name in names]
        parts = (got,) if isinstance(got, Tensor) else got
        if not isinstance(parts, tuple | list) or len(parts) != len(names):
            raise ModuleError(
                f"step: {self.title} gives {_kind(got)} as {what}, expected {len(names)}: {', '.join(names) or 'none'}"
            )
        for name, part in zip(names, parts, strict=True):
            if not isinstance(part, Tensor):
                raise ModuleError(f"step: {self.title} gives {type(part).__name__} as {name!r}, expected a tensor")
        return tuple(parts)

    def _check(self) -> None:
        """Run two steps and compare their shapes and types with the description."""
        x, state = torch.zeros(CHECKED_ROWS, len(self.description.features)), self.initial_state(CHECKED_ROWS)
        for _ in range(2):
            try:
                with torch.no_grad():
                    outputs, after = self.step(x, state)
            except ModuleError:
                raise
            except Exception as error:  # whatever a person's own code raises
                sizes = ", ".join(
                    f"{part.name} {list(tensor.shape)}"
                    for part, tensor in zip(self.description.state, state, strict=True)
                )
                raise ModuleError(
                    f"step: {self.title} fails on x {list(x.shape)} and state {sizes or 'none'}: {_first_line(error)}"
                ) from error
            for output, part in zip(self.description.outputs, outputs, strict=True):
                self._check_output(output, part)
            for described, before, part in zip(self.description.state, state, after, strict=True):
                if (part.shape, part.dtype) != (before.shape, before.dtype):
                    raise ModuleError(
                        f"step: {self.title} gives {described.name!r} as {_typed(part)}, expected {_typed(before)} as it "
                        f"came in, for a batch of {CHECKED_ROWS}"
                    )
            state = after

    def _check_output(self, output: Output, part: Tensor) -> None:
        expected = [CHECKED_ROWS, *(output.axes or part.shape[1:])]
        if part.ndim < 2 or list(part.shape) != expected:
            axes = {"horizons": output.horizons, "targets": output.targets, "quantiles": output.quantiles}
            named = ", ".join(f"{len(axis)} {name}" for name, axis in axes.items() if len(axis))
            wanted = f"{expected}: the batch, then {named}" if named else "[batch, ...]"
            raise ModuleError(
                f"step: {self.title} gives {output.name!r} as {list(part.shape)} for a batch of {CHECKED_ROWS}, "
                f"expected {wanted}"
            )
        if part.dtype not in DTYPES.values():
            raise ModuleError(
                f"step: {self.title} gives {output.name!r} as {part.dtype}, expected one of {', '.join(DTYPES)}"
            )


def _check_names(where: str, names: Sequence[str]) -> None:
    for name in names:
        if not name.strip() or names.count(name) > 1:
            raise SettingsError(f"{where}: got the name {name!r} {names.count(name)} times, expected each name once")


def _check_state(part: State) -> None:
    sizes = [size for size in part.shape if size != "batch"]
    if len(sizes) != len(part.shape) - 1 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise SettingsError(
            f"state: {part.name!r} has shape {tuple(part.shape)}, expected positive sizes and once the word 'batch', as in "
            f"(1, 'batch', 64)"
        )
    if part.dtype not in DTYPES:
        raise SettingsError(f"state: {part.name!r} has dtype {part.dtype!r}, expected one of {', '.join(DTYPES)}")
    values = torch.as_tensor(part.initial)
    of_stream = int(torch.tensor(sizes).prod())
    if values.ndim and values.numel() != of_stream:
        raise SettingsError(
            f"state: {part.name!r} has {values.numel()} initial values, expected one, or {of_stream} for {tuple(part.shape)}"
        )


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dictionary of {', '.join(map(str, value)) or 'nothing'}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def _typed(part: Tensor) -> str:
    return f"{list(part.shape)} {str(part.dtype).removeprefix('torch.')}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
