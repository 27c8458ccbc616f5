"""The toy model: one feature, and one output, the sum of all values so far. Also makes statuses and errors."""

from datetime import timedelta
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tidegate.v1 import tidegate_pb2 as pb

MODEL = pb.Model(
    name="toy",
    version="1",
    fingerprint="0" * 64,
    features=[pb.Feature(name="x")],
    outputs=[pb.Output(name="sum", data_type=pb.DATA_TYPE_FLOAT32, shape=[1])],
    batch_invariant=True,
)
# The number of remembered answers: enough to test timesteps behind a refused one, and small enough to fill.
WINDOW = 8


def pack(*values: float) -> bytes:
    """Returns values as the protocol carries them."""
    return np.array(values, "<f4").tobytes()


def make_status(code: grpc.StatusCode, reason: str, action: str, retry_s: float = 0.0) -> Any:
    """Makes a status of the service. Without a reason it looks like a status of the network."""
    status = status_pb2.Status(code=code.value[0], message=f"{reason or code.name} by the script")
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain="tidegate.v1", metadata={"action": action})
        retry = error_details_pb2.RetryInfo(retry_delay=timedelta(seconds=retry_s))
        for detail in (info, retry) if retry_s else (info,):
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
    return rpc_status.to_status(status)


def make_error(step: int, reason: str | int, action: str, next_step: int, retry_s: float = 0.0) -> pb.Error:
    """Makes the refusal of a timestep. A number as reason is one that no client knows."""
    number = reason if isinstance(reason, int) else pb.Error.Reason.Value(f"REASON_{reason}")
    return pb.Error(
        step=step,
        reason=number,  # type: ignore[arg-type]  # also an unknown one
        message=f"{reason} by the script",
        next_step=next_step,
        retry_after=timedelta(seconds=retry_s) if retry_s else None,
        action=f"ACTION_{action}",
    )
