"""Describes the server and its models: metadata, configuration, statistics."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tidegate.core.spec import Spec, StateTensor
from tidegate.rpc.kserve.backend import ModelCounts, ServingLimits
from tidegate.rpc.kserve.messages import ModelConfig, ModelMetadataResponse, ModelStatistics, StatisticDuration
from tidegate.rpc.kserve.tensors import DATA_TYPES, output_tensors, stream_tensors, timestep_tensors

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("sequence", "sequence(string_id)", "model_configuration", "model_repository", "parameters")
STATISTICS = "statistics"
NANOSECONDS = 1_000_000_000
MICROSECONDS = 1_000_000
# Sequences that are never forgotten: the largest number of the field.
FOREVER = 2**64 - 1


def extensions(limits: ServingLimits) -> list[str]:
    """The extensions of the protocol that the server answers.

    With several workers, each connection sees the statistics of one of them. A client that compares them with its own
    counts, as perf_analyzer does, would fail: then they are not announced.
    """
    return [*EXTENSIONS, STATISTICS] if limits.counts_all else list(EXTENSIONS)


def model_metadata(spec: Spec, versions: Sequence[str]) -> Any:
    """The tensors of a model. State is not among them: clients do not send it."""
    response = ModelMetadataResponse(name=spec.name, versions=versions, platform=PLATFORM)
    inputs = (*timestep_tensors(spec), *stream_tensors(spec))
    for described, tensors in ((response.inputs, inputs), (response.outputs, output_tensors(spec))):
        for tensor in tensors:
            described.add(name=tensor.name, datatype=tensor.data_type.name, shape=[-1, *tensor.shape])
    return response


def model_config(spec: Spec, limits: ServingLimits) -> Any:
    """How a model is served. A request has one timestep; the server makes batches of those of many sequences."""
    config = ModelConfig(name=spec.name, platform=PLATFORM, backend="onnxruntime", max_batch_size=limits.batch_max)
    config.default_model_filename = "model.onnx"
    config.version_policy.all.SetInParent()
    for tensor in timestep_tensors(spec):
        config.input.add(name=tensor.name, data_type=tensor.data_type.number, dims=tensor.shape)
    for tensor in stream_tensors(spec):  # only a start must have them
        config.input.add(name=tensor.name, data_type=tensor.data_type.number, dims=tensor.shape, optional=True)
    for tensor in output_tensors(spec):
        config.output.add(name=tensor.name, data_type=tensor.data_type.number, dims=tensor.shape)
    config.instance_group.add(name=spec.name, kind=2, count=1)  # KIND_CPU
    batching = config.sequence_batching
    forget_us = round(limits.forget_after_s * MICROSECONDS)
    batching.max_sequence_idle_microseconds = forget_us or FOREVER
    batching.oldest.max_candidate_sequences = limits.live_max
    for state in filter(lambda tensor: tensor.next_name, spec.state):  # the server itself moves windows on
        _describe_state(batching.state.add(), state)
    return config


def _describe_state(described: Any, tensor: StateTensor) -> None:
    number = DATA_TYPES[tensor.dtype].number
    described.input_name, described.output_name, described.data_type = tensor.name, tensor.next_name, number
    described.dims.extend(tensor.shape)
    if not np.any(tensor.initial):  # other values cannot be told
        described.initial_state.add(data_type=number, dims=tensor.shape, zero_data=True, name=f"{tensor.name} at first")


def model_statistics(spec: Spec, counts: ModelCounts) -> Any:
    """What a model has done.

    Clients divide times by counts of requests. A batch is measured as a whole, and its time is shared by its timesteps.
    Copying values in and out is part of that time.
    """
    statistics = ModelStatistics(
        name=spec.name, version=spec.version, inference_count=counts.applied, execution_count=counts.batches
    )
    stats = statistics.inference_stats
    for part, count, seconds in (
        (stats.success, counts.applied, counts.step_seconds),
        (stats.fail, counts.failed, 0.0),
        (stats.queue, counts.queued, counts.queue_seconds),
        (stats.compute_input, counts.applied, 0.0),  # the three counts must be equal: clients check it
        (stats.compute_infer, counts.applied, counts.batch_seconds),
        (stats.compute_output, counts.applied, 0.0),
        (stats.cache_hit, 0, 0.0),
        (stats.cache_miss, 0, 0.0),
    ):
        part.CopyFrom(StatisticDuration(count=count, ns=round(seconds * NANOSECONDS)))
    return statistics
