"""One step of a module -> ONNX graph, by torch's exporter."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from tidegate.training.publishing.opset import EXPORTED_OPSET, lower_versions

# Traced with three rows: the exporter would take a batch of one for a constant.
TRACE_BATCH = 3


def trace(
    module: nn.Module,
    x: Tensor,
    state: Sequence[Tensor],
    *,
    batch_axes: Sequence[int],
    outputs: Sequence[str],
    states: Sequence[str],
) -> onnx.ModelProto:
    """Trace `module(x, *state)`, which returns the outputs and the next state, as one graph without a description.

    Args:
        module: ready to run.
        x: (`TRACE_BATCH`, features).
        state: the state tensors, each of that batch.
        batch_axes: the axis of the batch in each of them.
        outputs: their names.
        states: the names of the state tensors. The output that replaces `h` is called `h_next`.
    """
    batch = torch.export.Dim("batch")
    axes: dict[str, Any] = {"x": {0: batch}}
    if len(state):
        axes["state"] = tuple({axis: batch} for axis in batch_axes)
    # torch caches the output shapes of each operator by its input shapes. The batch is a symbol here, and a lookup then costs more than
    # the shapes themselves: without the cache an export takes about a fifth less time.
    uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)  # noqa: SLF001 - it has no public name
    with _quiet_exporter(), uncached, torch.no_grad():
        program = torch.onnx.export(
            module,
            (x, *state),
            dynamo=True,
            external_data=False,
            verbose=False,
            opset_version=EXPORTED_OPSET,
            input_names=["x", *states],
            output_names=[*outputs, *(f"{name}_next" for name in states)],
            dynamic_shapes=axes,
        )
    assert program is not None  # only the old exporter returns None
    model = program.model_proto
    _strip(model)
    lower_versions(model)
    return model


def symbolic_dimensions(model: onnx.ModelProto) -> dict[str, list[str]]:
    """The symbolic dimensions of each input and output, by name. It should be the batch alone."""
    return {
        value.name: [dimension.dim_param for dimension in value.type.tensor_type.shape.dim if dimension.dim_param]
        for value in [*model.graph.input, *model.graph.output]
    }


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes about source code: stack traces with paths of the exporting machine."""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    parts: list[Any] = [*model.graph.node, *model.graph.input, *model.graph.output]
    for part in [*parts, *model.graph.value_info, *model.graph.initializer]:
        part.doc_string = ""
        del part.metadata_props[:]


# Warnings of torch during the export that are of no use to the user.
_NOISE = (
    # torch calls a function that torch has deprecated
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # all state tensors share the batch dimension, as they should
    (UserWarning, r"# The axis name: batch will not be used"),
    # what torch does itself when it exports an `nn.LSTM`
    (FutureWarning, r"_check_is_size will be removed"),
    (UserWarning, r"The tensor attributes? .*_flat_weights"),
)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence these warnings of the exporter, and nothing else."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns of each missing operator of torchvision, which is not needed
    try:
        with warnings.catch_warnings():
            for category, message in _NOISE:
                warnings.filterwarnings("ignore", message=message, category=category)
            yield
    finally:
        registration.setLevel(level)
