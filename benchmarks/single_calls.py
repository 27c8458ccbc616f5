"""Measures what a timestep costs the server that comes by `PredictOne`: many slow sensors, each stored before it is answered.

python benchmarks/single_calls.py [--sensors 100] [--seconds 20] [--quick]

Each sensor sends one timestep a second, at its own moment in the second, over one connection; the server keeps its streams in
SQLite. Counted is the CPU time of the server and its threads. Exit code 1 when a timestep costs 2 ms or more.
"""

import asyncio
import random
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated

import grpc
import numpy as np
import typer
import uvloop
from machine import facts
from model import FEATURES, write_model
from side import Side, serve

from protos.tidegate.v1 import tidegate_pb2 as pb

METHOD = "/tidegate.v1.TidegateService/PredictOne"
PERIOD_S = 1.0
CPU_MS_MAX = 2.0
# What is not counted: streams begin, and code is run for the first time.
WARM_UP_STEPS = 3
ANSWER_SECONDS_MAX = 30


async def measure(side: Side, sensors: int, steps: int) -> tuple[float, list[float]]:
    """CPU milliseconds a timestep, and what each took from client to client, in milliseconds."""
    times: list[float] = []
    begun_at, cpu_s = asyncio.Event(), 0.0
    ready = 0
    async with grpc.aio.insecure_channel(side.address) as channel:
        call = channel.unary_unary(METHOD, pb.PredictOneRequest.SerializeToString, pb.PredictOneResponse.FromString)

        async def step(sensor: int, number: int) -> float:
            values = np.full(FEATURES, number, "<f4").tobytes()
            begun = perf_counter()
            request = pb.PredictOneRequest(stream_id=f"sensor-{sensor}", step=number, values=values)
            answer = await call(request, timeout=ANSWER_SECONDS_MAX)
            assert answer.prediction.durable_step == number
            return (perf_counter() - begun) * 1000

        async def run(sensor: int) -> None:
            nonlocal ready
            for number in range(1, WARM_UP_STEPS + 1):
                await step(sensor, number)
            ready += 1
            if ready == sensors:
                begun_at.set()
            await begun_at.wait()
            due = perf_counter() + random.random() * PERIOD_S
            for number in range(WARM_UP_STEPS + 1, WARM_UP_STEPS + steps + 1):
                await asyncio.sleep(max(0.0, due - perf_counter()))
                times.append(await step(sensor, number))
                due += PERIOD_S

        async with asyncio.TaskGroup() as group:
            for sensor in range(sensors):
                group.create_task(run(sensor))
            await begun_at.wait()
            cpu_s = side.cpu_seconds()
        cpu_s = side.cpu_seconds() - cpu_s
    return cpu_s * 1000 / len(times), times


def main(
    sensors: Annotated[int, typer.Option(min=1, help="Streams, each with one timestep a second.")] = 100,
    seconds: Annotated[int, typer.Option(min=2, help="Timesteps of each that are counted.")] = 20,
    quick: Annotated[bool, typer.Option("--quick", help="Only sees that it runs; nothing is judged.")] = False,
) -> None:
    """Measure what a timestep costs that comes by PredictOne."""
    if quick:
        sensors, seconds = 20, 2
    with TemporaryDirectory(prefix="tidegate-bench-") as folder:
        write_model(Path(folder))
        with Side("tidegate", serve(Path(folder), "--state", f"sqlite://{folder}/state.db")) as side:
            cpu_ms, times = uvloop.run(measure(side, sensors, seconds))
    p99 = quantiles(times, n=100)[98]
    print(f"{sensors} sensors at 1 Hz by PredictOne, SQLite, each stored before it is answered: {len(times)} timesteps")
    print(f"  {cpu_ms:.2f} ms of server CPU each; answered in {median(times):.1f} ms (p50), {p99:.1f} ms (p99)")
    print(", ".join(f"{name} {value}" for name, value in facts().items()))
    if cpu_ms >= CPU_MS_MAX and not quick:
        print(f"a timestep costs {cpu_ms:.2f} ms of CPU, expected less than {CPU_MS_MAX}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
