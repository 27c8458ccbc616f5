"""A caller of the full Python client that has stopped waiting changes nothing for the others."""

import sys

from tests.calls import pack
from tests.clients.programs import CLIENTS, Client
from tests.scripted import closing, scripted
from tests.scripted_calls import Call

# Waits for the second of two timesteps; who waited for the first is cancelled before it is answered.
DRIVER = f"""
import asyncio, sys
sys.path.insert(0, {str(CLIENTS / "python")!r})
import grpc
from common import pack, pb_grpc, show
from full import FullStream

async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        stream = FullStream(pb_grpc.TidegateServiceStub(channel), sys.argv[2])
        first, second = await stream.send(pack("1")), await stream.send(pack("2"))
        first.cancel()
        show(await second)
        await stream.close()

asyncio.run(main())
"""


async def test_a_caller_that_is_cancelled_changes_nothing() -> None:
    """Its timestep keeps its number, and its prediction is dropped."""

    async def script(call: Call) -> None:
        await call.open()
        await call.serve(1)
        await call.serve(2, durable=2)
        await closing(call)

    async with scripted(script) as server:
        client = await Client.start([sys.executable, "-c", DRIVER], server.address, "s")
        try:
            await client.has(1)
            await client.close()
            assert client.answers == [(2, pack(3.0))]
        finally:
            await client.kill()
