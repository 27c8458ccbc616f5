"""Level 3: full. Many timesteps in flight, stored in the background, and each prediction delivered once and in order.

python full.py ADDRESS STREAM_ID [MODEL]

The rules are those of docs/protocol.md.
"""

import asyncio
import sys
import threading
import uuid
import zlib
from collections import deque
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import chain
from typing import Any

import grpc
from common import (
    BACKOFF_FIRST_S,
    CALL_S,
    CHANNEL,
    ENVELOPE_BYTES,
    Ending,
    Refused,
    Retry,
    StreamLost,
    ending_of,
    ending_of_timestep,
    pack,
    pb,
    pb_grpc,
    show,
)

KEPT_MAX = 1024
RETRY_S = 60.0  # for how long a timestep is sent again that the server has no room for


class AnswerLost(Exception):
    """A timestep was applied, but its prediction is gone. The stream goes on."""

    reason = "ANSWER_LOST"


class Broken(Exception):
    """The call is of no more use; the stream goes on with another."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending


class Entry:
    """A timestep that the client keeps; `check` is a checksum of the outputs that were delivered for it, 0 without any."""

    def __init__(self, values: bytes) -> None:
        self.values = values
        self.delivered: asyncio.Future[pb.Prediction] = asyncio.get_running_loop().create_future()
        self.check = 0
        self.until = 0.0  # when to give up on it, from its first refusal on

    def settle(self, told: pb.Prediction | Exception) -> None:
        """Tells its caller, who may have been cancelled: that changes nothing (rule 6)."""
        if self.delivered.done():
            return
        if isinstance(told, Exception):
            self.delivered.set_exception(told)
            self.delivered.exception()  # a caller who does not look is no fault of ours
        else:
            self.delivered.set_result(told)


class FullStream:
    """An open stream."""

    def __init__(self, stub: pb_grpc.TidegateServiceStub, stream_id: str, model: str = "") -> None:
        self._stub = stub
        self._ask = pb.Open(stream_id=stream_id, model=model, owner=uuid.uuid4().hex, kept_max=KEPT_MAX)
        self._model: pb.Model | None = None
        self._kept: deque[Entry] = deque()  # answered and not stored: numbers up to `_answered`
        self._pending: deque[Entry] = deque()  # not answered: numbers from `_answered` + 1
        self._in_flight: deque[tuple[int, Entry | None]] = deque()  # None: the answer is to be ignored
        self._answered = self._durable = self._applied = 0
        self._cursor = self._window = 1  # number of the next timestep to send; how many may be in flight
        self._bytes_max = 4 << 20  # the largest request that the server reads; it may say otherwise
        self._not_before = 0.0  # when to send on after a refusal
        self._closing = self._silent = False  # the user closes; nothing more is to be sent on this call
        self._room = asyncio.Event()  # there may be room for another timestep
        self._wake = asyncio.Event()  # there may be something to send
        self._limit = asyncio.timeout(None)  # of the call
        self._retry = Retry()
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(lambda _: self._room.set())  # who waits for room is told

    # What the user calls ----------------------------------------------------------------------------------------------

    async def send(self, values: bytes) -> "asyncio.Future[pb.Prediction]":
        """Sends a timestep, once there is room for it (rule 4); its prediction comes through the future."""
        while not self.task.done() and (self._model is None or len(self._kept) + len(self._pending) >= KEPT_MAX):
            self._room.clear()
            await self._room.wait()
        if self.task.done():
            self.task.result()  # raises what ended the stream
        entry = Entry(values)
        if len(values) > self._bytes_max - ENVELOPE_BYTES:
            entry.settle(Refused("TOO_LARGE", f"{len(values)} bytes; the server reads {self._bytes_max}"))
        else:
            self._pending.append(entry)
            self._wake.set()
        return entry.delivered

    async def close(self) -> None:
        """Ends the stream when all is answered and stored; raises what ended it before that."""
        self._closing = True
        self._wake.set()
        await self.task

    # The stream, over many calls --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                try:
                    return await self._speak()
                except Broken as broken:
                    await asyncio.sleep(self._retry.after(broken.ending))
        except StreamLost as lost:
            for entry in self._pending:
                entry.settle(lost)
            raise

    async def _speak(self) -> None:
        """One call, from its open to its end; raises Broken when another one is to follow."""
        call = self._stub.Predict()
        writer = None
        try:
            async with asyncio.timeout(CALL_S) as self._limit:
                await _say(call, pb.PredictRequest(open=self._ask))
                while not (response := await self._read(call)).HasField("opened"):
                    pass
                self._take_opened(response.opened)
                writer = asyncio.create_task(self._write(call))
                while not self._take(await self._read(call)):
                    self._wake.set()
                await writer  # it has half-closed
        except TimeoutError:
            raise Broken(Ending("DEADLINE_EXCEEDED", "REOPEN", f"nothing came for {CALL_S:g} s")) from None
        finally:
            call.cancel()
            if writer is not None:
                writer.cancel()
                await asyncio.wait([writer])

    async def _read(self, call: grpc.aio.StreamStreamCall) -> pb.PredictResponse:
        try:
            response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise Broken(ending_of(error)) from None
        if response is grpc.aio.EOF:
            raise Broken(Ending("OK", "REOPEN", "the server ended the call"))
        return response

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        """Sends what is to be sent, whatever is read meanwhile (rule 4)."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            while not self._silent and (request := self._next(loop.time())) is not None:
                await _say(call, request)
            if self._silent:
                return await _say(call, None)
            with suppress(TimeoutError):  # the wait after a refusal is over
                async with asyncio.timeout(max(0.0, self._not_before - loop.time()) or None):
                    await self._wake.wait()

    def _next(self, now: float) -> pb.PredictRequest | None:
        """What to send now: from the cursor on, no further than the window."""
        first = self._answered - len(self._kept) + 1
        self._cursor = max(self._cursor, first)
        if now < self._not_before or len(self._in_flight) >= self._window:
            return None
        place = self._cursor - first
        if place < len(self._kept) + len(self._pending):
            kept = len(self._kept)
            entry = self._kept[place] if place < kept else self._pending[place - kept]
            self._in_flight.append((self._cursor, entry))
            self._cursor += 1
            return pb.PredictRequest(timestep=pb.Timestep(step=self._cursor - 1, values=entry.values))
        if self._closing and not self._in_flight:
            self._silent = True  # rule 8: half-close, nothing may follow
            return pb.PredictRequest(close=pb.Close())
        return None

    # What the server says ---------------------------------------------------------------------------------------------

    def _take_opened(self, opened: pb.Opened) -> None:
        """Rule 2."""
        if self._model is None:
            self._answered = opened.next_step - 1
            self._model = opened.model
            self._ask.stream_id = opened.stream_id
            self._ask.model, self._ask.version = opened.model.name, opened.model.version
        elif self._model.fingerprint != opened.model.fingerprint:
            raise StreamLost("MODEL_MISMATCH", "the server has other weights than the stream began with")
        self._model.batch_invariant = opened.model.batch_invariant
        self._in_flight.clear()
        self._applied = opened.next_step - 1
        self._cursor = min(opened.next_step, self._answered + 1)
        self._window = max(1, opened.answers_remembered)
        self._bytes_max = opened.message_bytes_max or self._bytes_max
        self._silent, self._not_before = False, 0.0
        self._store(opened.durable_step)
        self._room.set()
        self._limit.reschedule(None)  # the call may last for months
        self._retry.opened()
        self._rest()

    def _take(self, response: pb.PredictResponse) -> bool:
        """Takes in a response; True when the stream is closed. Kinds that are not known mean nothing."""
        kind = response.WhichOneof("kind")
        if kind == "prediction":
            self._predicted(response.prediction)
        elif kind == "error":
            self._refused(response.error)
        elif kind == "durable":
            self._store(response.durable.durable_step)
        elif kind == "move":
            self._silent = True
            self._limit.reschedule(asyncio.get_running_loop().time() + CALL_S)
        elif kind == "closed":
            self._store(response.closed.durable_step)
            if self._durable >= self._answered:
                return True
            raise Broken(Ending("STORE_UNAVAILABLE", "REOPEN", "not all was stored when the stream was closed"))
        self._rest()
        return False

    def _predicted(self, prediction: pb.Prediction) -> None:
        """Rule 5."""
        entry = self._due(prediction.step)
        self._applied = max(self._applied, prediction.step)
        check = zlib.crc32(b"".join(prediction.outputs))
        if entry is None:
            pass
        elif prediction.step > self._answered:
            entry.check = check
            self._answer(entry, prediction if prediction.outputs else AnswerLost())
        elif self._model.batch_invariant and check and entry.check and check != entry.check:
            raise StreamLost("DIVERGED", f"timestep {prediction.step} is answered otherwise than it was delivered")
        self._store(prediction.durable_step)

    def _refused(self, error: pb.Error) -> None:
        """Rule 7."""
        step, entry, ending = error.step, self._due(error.step), ending_of_timestep(error)
        if entry is None:
            return
        if ending.action == "REOPEN":
            raise Broken(ending)
        if ending.action not in ("RETRY", "DROP"):
            raise StreamLost(ending.reason, ending.message)
        self._applied = max(self._applied, error.next_step - 1)
        self._in_flight = deque((number, None) for number, _ in self._in_flight)
        self._cursor = step
        now = asyncio.get_running_loop().time()
        entry.until = entry.until or now + RETRY_S
        if ending.action == "RETRY" and now < entry.until:
            self._not_before = now + max(ending.wait_s(), BACKOFF_FIRST_S)
        elif step <= self._answered:
            raise StreamLost("DIVERGED", f"timestep {step} was delivered and is refused now: {ending.message}")
        elif step <= self._applied:
            self._cursor = step + 1
            self._answer(entry, AnswerLost())
        else:
            self._pending.popleft()  # rule 3: those behind it move up
            self._room.set()
            entry.settle(Refused(ending.reason, ending.message))
            self._retry.progress()

    def _due(self, step: int) -> Entry | None:
        """The timestep that an answer is for; answers come in the order of the requests."""
        if not self._in_flight or self._in_flight[0][0] != step:
            raise StreamLost("WRONG_ORDER", f"timestep {step} was answered, which was not due")
        return self._in_flight.popleft()[1]

    def _answer(self, entry: Entry, told: pb.Prediction | Exception) -> None:
        """The first pending timestep is applied, and its caller told; it is kept until it is stored."""
        self._kept.append(self._pending.popleft())
        self._answered += 1
        entry.settle(told)
        self._retry.progress()

    def _rest(self) -> None:
        """When nothing is waited for, neither by the user nor to be sent again, the minute begins anew."""
        if not (self._closing or self._pending or self._in_flight or self._cursor <= self._answered):
            self._retry.rest()

    def _store(self, step: int) -> None:
        """Drops what is stored: the client will never have to send it again."""
        self._durable = max(self._durable, step)
        while self._kept and self._answered - len(self._kept) < self._durable:
            self._kept.popleft()
            self._room.set()
        self._ask.resume_from = self._answered - len(self._kept) + 1  # rule 1


async def _say(call: grpc.aio.StreamStreamCall, request: pb.PredictRequest | None) -> None:
    """Sends a request, or half-closes. How a call has ended is told to who reads."""
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await (call.done_writing() if request is None else call.write(request))


async def main() -> None:
    """Sends each line of stdin as the next timestep, as far ahead as it may."""
    address, stream_id, *model = sys.argv[1:]
    async with grpc.aio.insecure_channel(address, options=CHANNEL) as channel:
        stream = FullStream(pb_grpc.TidegateServiceStub(channel), stream_id, *model)
        sent: asyncio.Queue[asyncio.Future[pb.Prediction] | None] = asyncio.Queue()  # None: there is no more
        stream.task.add_done_callback(lambda _: sent.put_nowait(None))  # a stream that is lost does not wait for stdin
        threading.Thread(target=_read_all, args=[stream, sent, asyncio.get_running_loop()], daemon=True).start()
        while (delivered := await sent.get()) is not None:
            try:
                show(await delivered)
            except (Refused, AnswerLost) as error:
                print("refused", error.reason, flush=True)
        await stream.close()


def _read_all(stream: FullStream, sent: "asyncio.Queue[Any]", loop: asyncio.AbstractEventLoop) -> None:
    """Reads stdin in a thread of its own: a file cannot be waited for."""

    async def send(line: str) -> None:
        await sent.put(await stream.send(pack(line)) if line else None)

    with suppress(StreamLost, CancelledError, RuntimeError):  # who closes the stream is told; then the loop ends
        for line in chain(sys.stdin, [""]):
            asyncio.run_coroutine_threadsafe(send(line), loop).result()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except StreamLost as error:
        sys.exit(str(error))
