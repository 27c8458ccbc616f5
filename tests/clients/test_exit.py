"""How the Python client ends."""

import sys

from tests.clients.programs import CLIENTS, Client
from tests.scripted import closing, scripted
from tests.scripted_calls import Call

PROGRAM = f"""
import gc, sys
sys.path.insert(0, {str(CLIENTS / "python")!r})
import grpc, simple
gc.disable()
simple.main()
calls = [each for each in gc.get_objects() if isinstance(each, grpc.Call)]
sys.exit(f"{{len(calls)}} calls are alive" if calls else 0)
"""


async def test_no_call_is_alive_when_python_ends() -> None:
    """A call that is deleted while Python ends waits for ever for its lock, if one of gRPC's threads held it at that moment."""

    async def breaking(call: Call) -> None:
        await call.open()
        await call.serve(1, durable=1)
        await call.expect(2)
        await call.end(code="UNKNOWN")

    async def again(call: Call) -> None:
        await call.open()
        await call.expect(2)
        await call.answer(2, durable=2)
        await closing(call)

    async with scripted(breaking, again) as server:
        client = await Client.start([sys.executable, "-c", PROGRAM], server.address, "s")
        await client.send([1.0], [2.0])
        await client.has(2)
        await client.close()
