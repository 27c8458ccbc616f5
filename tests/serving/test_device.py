"""Where a model runs."""

import asyncio
from pathlib import Path

import onnxruntime
import pytest

from tests.graphs import running_sum, write_model
from tests.servers import run_command, run_server
from tidegate.core.device import DeviceMissing, check_used, providers_of
from tidegate.core.errors import ContractBroken
from tidegate.core.model import Model
from tidegate.runtime.config import InvalidSetting, ServerConfig

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
needs_no_gpu = pytest.mark.skipif(
    CUDA in onnxruntime.get_available_providers(), reason="this onnxruntime has the CUDA provider"
)


def test_the_processor_is_used_alone() -> None:
    """Also where a GPU could be had."""
    assert providers_of("cpu", [CUDA, CPU]) == [CPU]


def test_a_gpu_leaves_the_rest_to_the_processor() -> None:
    """Operators that it does not have."""
    assert providers_of("cuda", [CUDA, CPU]) == [CUDA, CPU]


def test_a_missing_provider_is_told() -> None:
    """With what to install."""
    with pytest.raises(DeviceMissing, match="install onnxruntime-gpu"):
        providers_of("cuda", [CPU])


def test_a_silent_fallback_is_an_error() -> None:
    """Without a driver, onnxruntime would run on the processor and say so only in its log."""
    with pytest.raises(DeviceMissing, match="nvidia-smi"):
        check_used("cuda", [CPU])


@needs_no_gpu
def test_a_model_is_refused_where_there_is_no_gpu() -> None:
    """By its name."""
    with pytest.raises(ContractBroken, match=r"toy/1: device 'cuda'.*--device cpu"):
        Model("toy", "1", running_sum(), device="cuda")


@needs_no_gpu
def test_a_server_does_not_start_without_its_gpu(tmp_path: Path) -> None:
    """One line, no traceback, exit code 3."""
    root = write_model(tmp_path / "models", running_sum())
    done = run_command("serve", "--models", str(root), "--device", "cuda", "--port", "0", "--metrics-port", "0")
    assert done.returncode == 3
    assert "install onnxruntime-gpu" in done.stderr
    assert "Traceback" not in done.stderr


async def test_the_device_reaches_the_model(sum_root: Path) -> None:
    """The processor, by default."""
    async with run_server(sum_root, device="cpu") as server:
        (served,) = server.repository
        session = served.batcher.engine.model._session
    assert await asyncio.to_thread(session.get_providers) == [CPU]


def test_an_unknown_device_is_refused() -> None:
    """With what is possible."""
    with pytest.raises(InvalidSetting, match="expected one of cpu, cuda"):
        ServerConfig(device="tpu")
