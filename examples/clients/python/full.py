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
RETRY_S = 60.0  # how long a timestep is sent again while the server has no room for it


class AnswerLost(Exception):
    """A timestep was applied, but its prediction is lost. The stream continues."""

    reason = "ANSWER_LOST"


class CallEnded(Exception):
    """The call has ended. The stream continues on another one."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending


class Entry:
    """A timestep that the client keeps; `checksum` is a checksum of the outputs that were delivered for it, 0 without any."""

    def __init__(self, values: bytes) -> None:
        self.values = values
        self.delivered: asyncio.Future[pb.Prediction] = asyncio.get_running_loop().create_future()
        self.checksum = 0
        self.until = 0.0  # its deadline, set by its first refusal

    def settle(self, outcome: pb.Prediction | Exception) -> None:
        """Completes the caller's future, unless it was cancelled (rule 6)."""
        if self.delivered.done():
            return
        if isinstance(outcome, Exception):
            self.delivered.set_exception(outcome)
            self.delivered.exception()  # no warning when the caller never looks
        else:
            self.delivered.set_result(outcome)


class FullStream:
    """An open stream."""

    def __init__(self, stub: pb_grpc.TidegateServiceStub, stream_id: str, model: str = "") -> None:
        self._stub = stub
        self._open_request = pb.Open(stream_id=stream_id, model=model, owner=uuid.uuid4().hex, kept_max=KEPT_MAX)
        self._model: pb.Model | None = None
        self._kept: deque[Entry] = deque()  # answered, not stored: numbers up to `_answered`
        self._pending: deque[Entry] = deque()  # not answered: numbers from `_answered` + 1
        self._in_flight: deque[tuple[int, Entry | None]] = deque()  # None: ignore the answer
        self._answered = self._durable = self._applied = 0
        self._cursor = self._window = 1  # number of the next timestep to send; how many may be in flight
        self._bytes_max = 4 << 20  # the largest request; the server may report another limit
        self._not_before = 0.0  # when to send again after a refusal
        self._closing = self._half_closed = False  # the user closes; this side sends nothing more on this call
        self._room = asyncio.Event()  # a timestep may have room
        self._wake = asyncio.Event()  # there may be something to send
        self._limit = asyncio.timeout(None)  # of the call
        self._retry = Retry()
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(lambda _: self._room.set())  # wakes callers that wait for room

    # For users -------------------------------------------------------------------------------------------------------

    async def send(self, values: bytes) -> "asyncio.Future[pb.Prediction]":
        """Sends a timestep once there is room (rule 4). The future gets its prediction."""
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
        """Closes the stream once everything is answered and stored. Raises the error that ended it before."""
        self._closing = True
        self._wake.set()
        await self.task

    # The stream, over many calls --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                try:
                    return await self._run_call()
                except CallEnded as ended:
                    await asyncio.sleep(self._retry.delay(ended.ending))
        except StreamLost as lost:
            for entry in self._pending:
                entry.settle(lost)
            raise

    async def _run_call(self) -> None:
        """Runs one call from its open to its end. Raises CallEnded when another one must follow."""
        call = self._stub.Predict()
        writer = None
        try:
            async with asyncio.timeout(CALL_S) as self._limit:
                await _write_request(call, pb.PredictRequest(open=self._open_request))
                while not (response := await self._read(call)).HasField("opened"):
                    pass
                self._on_opened(response.opened)
                writer = asyncio.create_task(self._write(call))
                while not self._on_response(await self._read(call)):
                    self._wake.set()
                await writer  # it has half-closed
        except TimeoutError:
            raise CallEnded(Ending("DEADLINE_EXCEEDED", "REOPEN", f"no response for {CALL_S:g} s")) from None
        finally:
            call.cancel()
            if writer is not None:
                writer.cancel()
                await asyncio.wait([writer])

    async def _read(self, call: grpc.aio.StreamStreamCall) -> pb.PredictResponse:
        try:
            response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise CallEnded(ending_of(error)) from None
        if response is grpc.aio.EOF:
            raise CallEnded(Ending("OK", "REOPEN", "the server ended the call"))
        return response

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        """Writes requests, independently of reading (rule 4)."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            while not self._half_closed and (request := self._next_request(loop.time())) is not None:
                await _write_request(call, request)
            if self._half_closed:
                return await _write_request(call, None)
            with suppress(TimeoutError):  # the wait after a refusal has ended
                async with asyncio.timeout(max(0.0, self._not_before - loop.time()) or None):
                    await self._wake.wait()

    def _next_request(self, now: float) -> pb.PredictRequest | None:
        """The next request: from the cursor on, within the window."""
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
            self._half_closed = True  # rule 8: half-close
            return pb.PredictRequest(close=pb.Close())
        return None

    # Responses -------------------------------------------------------------------------------------------------------

    def _on_opened(self, opened: pb.Opened) -> None:
        """Rule 2."""
        if self._model is None:
            self._answered = opened.next_step - 1
            self._model = opened.model
            self._open_request.stream_id = opened.stream_id
            self._open_request.model, self._open_request.version = opened.model.name, opened.model.version
        elif self._model.fingerprint != opened.model.fingerprint:
            raise StreamLost("MODEL_MISMATCH", "the weights differ from those under which the stream began")
        self._model.batch_invariant = opened.model.batch_invariant
        self._in_flight.clear()
        self._applied = opened.next_step - 1
        self._cursor = min(opened.next_step, self._answered + 1)
        self._window = max(1, opened.answers_remembered)
        self._bytes_max = opened.message_bytes_max or self._bytes_max
        self._half_closed, self._not_before = False, 0.0
        self._on_durable(opened.durable_step)
        self._room.set()
        self._limit.reschedule(None)  # no deadline from here on
        self._retry.opened()
        self._check_idle()

    def _on_response(self, response: pb.PredictResponse) -> bool:
        """Handles a response; True when the stream is closed. Unknown kinds are ignored."""
        kind = response.WhichOneof("kind")
        if kind == "prediction":
            self._on_prediction(response.prediction)
        elif kind == "error":
            self._on_error(response.error)
        elif kind == "durable":
            self._on_durable(response.durable.durable_step)
        elif kind == "move":
            self._half_closed = True
            self._limit.reschedule(asyncio.get_running_loop().time() + CALL_S)
        elif kind == "closed":
            self._on_durable(response.closed.durable_step)
            if self._durable >= self._answered:
                return True
            raise CallEnded(Ending("STORE_UNAVAILABLE", "REOPEN", "not all was stored when the stream was closed"))
        self._check_idle()
        return False

    def _on_prediction(self, prediction: pb.Prediction) -> None:
        """Rule 5."""
        entry = self._match_answer(prediction.step)
        self._applied = max(self._applied, prediction.step)
        checksum = zlib.crc32(b"".join(prediction.outputs))
        if entry is None:
            pass
        elif prediction.step > self._answered:
            entry.checksum = checksum
            self._settle_next(entry, prediction if prediction.outputs else AnswerLost())
        elif self._model.batch_invariant and checksum and entry.checksum and checksum != entry.checksum:
            raise StreamLost("DIVERGED", f"timestep {prediction.step} got a different answer than the delivered one")
        self._on_durable(prediction.durable_step)

    def _on_error(self, error: pb.Error) -> None:
        """Rule 7."""
        step, entry, ending = error.step, self._match_answer(error.step), ending_of_timestep(error)
        if entry is None:
            return
        if ending.action == "REOPEN":
            raise CallEnded(ending)
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
            raise StreamLost("DIVERGED", f"timestep {step} was delivered, but is refused now: {ending.message}")
        elif step <= self._applied:
            self._cursor = step + 1
            self._settle_next(entry, AnswerLost())
        else:
            self._pending.popleft()  # rule 3: later timesteps move up
            self._room.set()
            entry.settle(Refused(ending.reason, ending.message))
            self._retry.progress()

    def _match_answer(self, step: int) -> Entry | None:
        """The timestep that an answer belongs to. Answers come in the order of the requests."""
        if not self._in_flight or self._in_flight[0][0] != step:
            raise StreamLost("WRONG_ORDER", f"timestep {step} was answered out of order")
        return self._in_flight.popleft()[1]

    def _settle_next(self, entry: Entry, outcome: pb.Prediction | Exception) -> None:
        """Moves the first pending timestep to the kept ones, until it is stored, and completes its future."""
        self._kept.append(self._pending.popleft())
        self._answered += 1
        entry.settle(outcome)
        self._retry.progress()

    def _check_idle(self) -> None:
        """Clears the retry deadline when nothing is pending or being replayed."""
        if not (self._closing or self._pending or self._in_flight or self._cursor <= self._answered):
            self._retry.idle()

    def _on_durable(self, step: int) -> None:
        """Drops stored timesteps: they are never sent again."""
        self._durable = max(self._durable, step)
        while self._kept and self._answered - len(self._kept) < self._durable:
            self._kept.popleft()
            self._room.set()
        self._open_request.resume_from = self._answered - len(self._kept) + 1  # rule 1


async def _write_request(call: grpc.aio.StreamStreamCall, request: pb.PredictRequest | None) -> None:
    """Writes a request, or half-closes. The reader gets the status of a call that has ended."""
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await (call.done_writing() if request is None else call.write(request))


async def main() -> None:
    """Sends each line of stdin as the next timestep, as far ahead as the window allows."""
    address, stream_id, *model = sys.argv[1:]
    async with grpc.aio.insecure_channel(address, options=CHANNEL) as channel:
        stream = FullStream(pb_grpc.TidegateServiceStub(channel), stream_id, *model)
        sent: asyncio.Queue[asyncio.Future[pb.Prediction] | None] = asyncio.Queue()  # None: the end
        stream.task.add_done_callback(lambda _: sent.put_nowait(None))  # a lost stream does not wait for stdin
        threading.Thread(target=_read_all, args=[stream, sent, asyncio.get_running_loop()], daemon=True).start()
        while (delivered := await sent.get()) is not None:
            try:
                show(await delivered)
            except (Refused, AnswerLost) as error:
                print("refused", error.reason, flush=True)
        await stream.close()


def _read_all(stream: FullStream, sent: "asyncio.Queue[Any]", loop: asyncio.AbstractEventLoop) -> None:
    """Reads stdin in a thread, because asyncio cannot wait for a file."""

    async def send(line: str) -> None:
        await sent.put(await stream.send(pack(line)) if line else None)

    with suppress(StreamLost, CancelledError, RuntimeError):  # `close` raises the error
        for line in chain(sys.stdin, [""]):
            asyncio.run_coroutine_threadsafe(send(line), loop).result()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except StreamLost as error:
        sys.exit(str(error))
