"""Programs with the client library of Triton, in the style of its examples: `python triton_programs.py NAME ADDRESS ...`.

Each prints its results as one line of JSON, outputs as hexadecimal bytes. They run in an environment of their own, which
has tritonclient and `tidegate.client`.
"""

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np

FEATURES = 8
# The two sequences of the examples: ids may be numbers or texts.
PAIR: tuple[int | str, ...] = (1000, "pump-7")


def values(sequences: int, steps: int) -> Any:
    """The values of some sequences: (steps, sequences, 1, features). The test makes the same."""
    return np.random.default_rng(15).normal(size=(steps, sequences, 1, FEATURES)).astype(np.float32)


def tensors(grpcclient: Any, row: Any) -> list[Any]:
    """The inputs of a request."""
    tensor = grpcclient.InferInput("x", list(row.shape), "FP32")
    tensor.set_data_from_numpy(row)
    return [tensor]


def forecast(result: Any) -> str:
    """The output of an answer."""
    array = result.as_numpy("forecast")
    assert array.shape == (1, 2, 1)
    return array.tobytes().hex()


def parameters(result: Any) -> dict[str, Any]:
    """The parameters of an answer."""
    found = result.get_response().parameters
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in found.items()}


def on_answer(answers: "queue.Queue[Any]", result: Any, error: Any) -> None:
    """The callback of the examples."""
    answers.put(result if error is None else error)


def stream(address: str, ids: list[int | str], first: int, last: int, steps: int) -> Any:
    """Timesteps `first` to `last` of `steps` over one stream. Returns outputs by sequence and step, and parameters."""
    import tritonclient.grpc as grpcclient

    x = values(len(ids), steps)
    answers: queue.Queue[Any] = queue.Queue()
    outputs: list[list[str]] = [[] for _ in ids]
    seen: list[list[dict[str, Any]]] = [[] for _ in ids]
    with grpcclient.InferenceServerClient(address) as client:
        client.start_stream(partial(on_answer, answers))
        for step in range(first, last):
            for number, sequence in enumerate(ids):
                client.async_stream_infer(
                    "toy",
                    tensors(grpcclient, x[step, number]),
                    request_id=f"{number}_{step}",
                    sequence_id=sequence,
                    sequence_start=step == 0,
                    sequence_end=step == steps - 1,
                    outputs=[grpcclient.InferRequestedOutput("forecast")],
                )
        for _ in range((last - first) * len(ids)):
            answer = answers.get(timeout=60)
            if isinstance(answer, Exception):
                raise answer
            number = int(answer.get_response().id.split("_")[0])
            outputs[number].append(forecast(answer))
            seen[number].append(parameters(answer))
        client.stop_stream()
    return {"outputs": outputs, "parameters": seen}


def streaming(address: str) -> Any:
    """`simple_grpc_sequence_stream_infer_client`: two sequences over one stream."""
    return stream(address, list(PAIR), 0, 20, 20)


def many(address: str) -> Any:
    """64 sequences over one stream."""
    return stream(address, list(range(1, 65)), 0, 20, 20)


def part(address: str, first: str, last: str) -> Any:
    """Some timesteps of two sequences; without the first one they continue."""
    return stream(address, list(PAIR), int(first), int(last), 20)


def unary(address: str) -> Any:
    """`simple_grpc_sequence_sync_infer_client`: two sequences in unary calls."""
    import tritonclient.grpc as grpcclient

    x = values(len(PAIR), 20)
    outputs: list[list[str]] = [[] for _ in PAIR]
    with grpcclient.InferenceServerClient(address) as client:
        for step in range(20):
            for number, sequence in enumerate(PAIR):
                result = client.infer(
                    "toy",
                    tensors(grpcclient, x[step, number]),
                    sequence_id=sequence,
                    sequence_start=step == 0,
                    sequence_end=step == 19,
                )
                outputs[number].append(forecast(result))
    return {"outputs": outputs}


def asynchronous(address: str) -> Any:
    """`simple_grpc_aio_sequence_stream_infer_client`: two sequences over one stream of asyncio."""
    import tritonclient.grpc.aio as grpcclient

    x = values(len(PAIR), 20)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for step in range(20):
            for number, sequence in enumerate(PAIR):
                yield {
                    "model_name": "toy",
                    "inputs": tensors(grpcclient, x[step, number]),
                    "request_id": str(number),
                    "sequence_id": sequence,
                    "sequence_start": step == 0,
                    "sequence_end": step == 19,
                }

    async def run() -> list[list[str]]:
        outputs: list[list[str]] = [[] for _ in PAIR]
        async with grpcclient.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("toy")
            async for result, error in client.stream_infer(requests()):
                if error is not None:
                    raise error
                outputs[int(result.get_response().id)].append(forecast(result))
        return outputs

    return {"outputs": asyncio.run(run())}


def errors(address: str) -> Any:
    """What goes wrong, and that the stream goes on. Returns the messages."""
    import tritonclient.grpc as grpcclient

    x = values(1, 1)[0, 0]
    answers: queue.Queue[Any] = queue.Queue()
    found = {}
    with grpcclient.InferenceServerClient(address) as client:
        client.start_stream(partial(on_answer, answers))

        def ask(name: str, row: Any = x, **more: Any) -> None:
            client.async_stream_infer("toy", tensors(grpcclient, row), **more)
            answer = answers.get(timeout=60)
            found[name] = str(answer) if isinstance(answer, Exception) else forecast(answer)

        ask("missing start", sequence_id=5)
        ask("start", sequence_id=5, sequence_start=True)
        ask("shape", x[:, :7], sequence_id=5)
        ask("batch", np.concatenate([x, x]), sequence_id=5)
        ask("start of a live one", sequence_id=5, sequence_start=True)
        ask("end", sequence_id=5, sequence_end=True)
        ask("after the end", sequence_id=5)
        client.stop_stream()
        try:
            client.infer("toy", tensors(grpcclient, x), sequence_id=6)
        except grpcclient.InferenceServerException as error:
            found["unary"] = f"{error.status()} {error.message()}"
        try:
            client.load_model("other")
        except grpcclient.InferenceServerException as error:
            found["load"] = f"{error.status()} {error.message()}"
    return found


def cancelled(address: str) -> Any:
    """A stream that is cancelled, and another one that continues its sequence."""
    import tritonclient.grpc as grpcclient

    x = values(1, 20)[:, 0]
    outputs = []
    for first, last in ((0, 7), (7, 20)):
        answers: queue.Queue[Any] = queue.Queue()
        with grpcclient.InferenceServerClient(address) as client:
            client.start_stream(partial(on_answer, answers))
            for step in range(first, last):
                client.async_stream_infer("toy", tensors(grpcclient, x[step]), sequence_id=9, sequence_start=step == 0)
                outputs.append(forecast(answers.get(timeout=60)))
            client.stop_stream(cancel_requests=True)
    return {"outputs": [outputs]}


def analyzer(address: str) -> Any:
    """The calls of perf_analyzer: metadata, configuration, statistics, a stream for each sequence, statistics again."""
    import tritonclient.grpc as grpcclient

    x = values(4, 20)
    with grpcclient.InferenceServerClient(address) as client:
        found = {
            "metadata": client.get_model_metadata("toy", as_json=True),
            "config": client.get_model_config("toy", as_json=True),
            "server": client.get_server_metadata(as_json=True),
            "before": client.get_inference_statistics("toy", as_json=True),
            "index": client.get_model_repository_index(as_json=True),
        }
        outputs: list[list[str]] = []
        for number in range(4):
            answers: queue.Queue[Any] = queue.Queue()
            with grpcclient.InferenceServerClient(address) as worker:
                worker.start_stream(partial(on_answer, answers))
                outputs.append([])
                for step in range(20):
                    worker.async_stream_infer(
                        "toy",
                        tensors(grpcclient, x[step, number]),
                        request_id=str(step),
                        sequence_id=number + 1,
                        sequence_start=step == 0,
                        sequence_end=step == 19,
                        enable_empty_final_response=False,
                    )
                    outputs[-1].append(forecast(answers.get(timeout=60)))
                worker.stop_stream()
        found["after"] = client.get_inference_statistics("toy", as_json=True)
    return {"outputs": outputs, **found}


def beside(address: str, *order: str) -> Any:
    """Both clients in one process, imported in that order."""
    for name in order:
        __import__(name)
    import tritonclient.grpc as grpcclient

    from tidegate.client import Client

    x = values(1, 2)[:, 0]

    async def native() -> str:
        async with Client(address) as client, client.open("both") as opened:
            return (await opened.step(x[1, 0]))["forecast"].astype("<f4").tobytes().hex()

    with grpcclient.InferenceServerClient(address) as client:
        result = client.infer("toy", tensors(grpcclient, x[0]), sequence_id="both", sequence_start=True)
    return {"outputs": [[forecast(result), asyncio.run(native())]]}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
