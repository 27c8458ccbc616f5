"""Sequences move to another version of their model, as streams of our own protocol do, and their client is told."""

from typing import Any

import numpy as np
import pytest

from tests.calls import raw_channel
from tests.kserve.calls import StreamInfer, infer, parameters_of, raw_outputs
from tests.moves import Answer, check_answers
from tests.oracle import sensor_rows
from tests.servers import live, run_server
from tests.serving.test_versions import Root, promote, root
from tests.timeouts import eventually

__all__ = ["root"]  # a fixture

MOVED = {"pin": None, "rewarm": "rewarmed", "reset": "reset"}


def answer(response: Any) -> Answer:
    """What a client got."""
    forecast = np.frombuffer(raw_outputs(response)["forecast"], "<f4").reshape(2, 1)
    return Answer(parameters_of(response)["step"], {"forecast": forecast}, response.model_version, duplicate=False)


@pytest.mark.parametrize("unary", [False, True], ids=["stream", "unary"])
@pytest.mark.parametrize("policy", ["pin", "rewarm", "reset"])
async def test_a_new_default_appears_while_a_sequence_is_in_use(root: Root, policy: str, unary: bool) -> None:
    """Every answer has the bits of the version that it names, and the first one from there says how it got there."""
    rows = sensor_rows(40, missing=0.05)
    responses = []
    async with run_server(root(policy)) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        for number, row in enumerate(rows):
            if number == 20:
                await promote(server)
            start = number == 0
            step = infer(channel, 7, *row, start=start) if unary else call.step(7, *row, start=start)
            responses.append(await step)
    assert check_answers(rows, list(map(answer, responses)), policy) == ""
    if not unary:
        assert responses[-1].model_version == ("1" if policy == "pin" else "2")
        told = [moved for each in responses if (moved := parameters_of(each).get("moved"))]
        assert told == ([] if policy == "pin" else [MOVED[policy]])


@pytest.mark.parametrize(
    ("more", "version"),
    [({}, "2"), ({"step": 11}, "1"), ({"step": 11, "answered": 10}, "2"), ({"version": "1"}, "1")],
)
async def test_who_may_send_timesteps_again_stays_on_the_version_that_answered(
    root: Root,
    more: dict[str, Any],
    version: str,
) -> None:
    """A sequence that is resumed moves when its client has no answer that the server has lost."""
    rows = sensor_rows(11)
    async with run_server(root("rewarm")) as server, raw_channel(server) as channel:
        call = StreamInfer(channel)
        for number, row in enumerate(rows[:10]):
            await call.step(7, *row, start=number == 0)
        call.call.cancel()
        await eventually(lambda: live(server) == 0, "parking")
        await promote(server)
        response = await StreamInfer(channel).step(7, *rows[10], **more)
        assert response.model_version == version
        assert parameters_of(response).get("moved") == ("rewarmed" if version == "2" else None)
