"""Where a model runs: on the processor, or on a GPU with the CUDA provider of onnxruntime."""

from collections.abc import Sequence

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DEVICES = tuple(PROVIDERS)


class DeviceMissing(Exception):
    """The device cannot be used here. The message says why, and what to do."""


def providers_of(device: str, available: Sequence[str]) -> list[str]:
    """The providers for a session, the first one preferred; `available` are those of the installed onnxruntime.

    Raises DeviceMissing when the device has none.
    """
    provider = PROVIDERS[device]
    if provider not in available:
        raise DeviceMissing(
            f"device '{device}': the installed onnxruntime has no {provider} (it has {', '.join(available)}); "
            "install onnxruntime-gpu instead of onnxruntime, or use --device cpu"
        )
    # Operators that the GPU does not have run on the processor.
    return [provider] if device == "cpu" else [provider, PROVIDERS["cpu"]]


def check_used(device: str, used: Sequence[str]) -> None:
    """Checks the providers that a session has ended up with: onnxruntime falls back to the processor in silence.

    Raises DeviceMissing when the device is not among them.
    """
    if PROVIDERS[device] not in used:
        raise DeviceMissing(
            f"device '{device}': onnxruntime could not start {PROVIDERS[device]}; check the driver and the CUDA libraries "
            "(nvidia-smi), or use --device cpu"
        )
