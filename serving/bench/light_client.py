"""Calls on the light client of `http2`, which costs much less CPU than the server that it measures.

Sending never waits. The call keeps what flow control does not let through, and the send queue limits how much that can
be. So a server that reads slowly cannot stop this process from reading its answers.
"""

import time
from contextlib import AsyncExitStack
from typing import Any

import grpc

from tidegate.bench.encoding import Encoding, PredictBlocksEncoding, PredictEncoding, UnexpectedResponse, encode_rows
from tidegate.bench.http2 import Call, CallStatus, Connection
from tidegate.bench.load import CallRunner, LoadGenerator
from tidegate.bench.messages import Task
from tidegate.bench.send_queue import Answer, SendQueue
from tidegate.client.errors import ClientError, status_error
from tidegate.v1 import tidegate_pb2 as pb


class LightCallRunner(CallRunner):
    """Runs one call on the light client."""

    def __init__(self, load: LoadGenerator, streams: int, connection: Connection, encoding: Encoding) -> None:
        super().__init__(load, streams)
        self.queue = SendQueue(streams, 1, closed_loop=load.closed_loop)
        self._connection = connection
        self._encoding = encoding
        self._call: Call

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is in flight."""
        return self.queue.idle

    def open(self) -> None:
        """Opens the streams."""
        self._call = self._connection.call(self._encoding.method, self._on_opened, self._on_end)
        self._call.send(self._encoding.open_request())

    def on_due(self, due: float, now: float) -> None:
        """The next timestep of every row is due."""
        self._load.counts.add_offered(due, self.streams)
        if not self.lost and self.queue.add(due):
            self.flush(now)
        else:
            self._load.counts.add_unsent(due, self.streams)

    def flush(self, now: float) -> None:
        """Sends what can be sent."""
        queue = self.queue
        while queue.ready(now):
            self._call.send(self._encoding.request(queue.send(now), queue.lags))

    def abandon(self) -> list[tuple[float, int]]:
        """Gives up all unanswered messages."""
        return self.queue.abandon()

    def close(self) -> None:
        """Asks the server to close and delete the streams."""
        self._call.send(self._encoding.close_request(), last=True)

    def cancel(self) -> None:
        """Ends the call at once."""
        self._call.cancel()
        self.end("DEADLINE_EXCEEDED", "the server did not answer in time")

    def _on_opened(self, message: bytes) -> None:
        try:
            refused = self._encoding.decode_opened(message)
        except UnexpectedResponse as error:
            self._on_unexpected(error)
            return
        self.refused += refused
        self.streams -= refused.total()
        if not self.streams:
            self._call.cancel()
            self.end("TOO_MANY_STREAMS")  # the reason of each stream is counted already
            return
        load = self._load
        window = min(load.plan.ahead, self._encoding.window) if load.closed_loop else self._encoding.window
        self.queue = SendQueue(self.streams, window, closed_loop=load.closed_loop)
        self._call.on_message = self._on_answer
        self.opened.set_result(None)

    def _on_answer(self, message: bytes) -> None:
        now = time.monotonic()
        expected = self.queue.expected_number()
        try:
            answer = self._encoding.decode_answer(message, expected)
        except UnexpectedResponse as error:
            self._on_unexpected(error)
            return
        if isinstance(answer, Answer):
            if expected:
                self._take_answer(answer, now)
            else:
                self._on_unexpected(UnexpectedResponse("got an answer, expected none: no message is in flight"))
        elif answer is not None:
            self._load.counts.lost[answer.reason] += answer.streams

    def _take_answer(self, answer: Answer, now: float) -> None:
        queue, load = self.queue, self._load
        outcome = queue.take_answer(answer, now)
        if load.abandoned:
            return  # already counted as unanswered
        due, sent = outcome.due, outcome.sent
        if outcome.applied:
            load.counts.add_answered(now, due, sent, outcome.applied - len(outcome.late_due))
            for late in outcome.late_due:
                load.counts.add_answered(now, late, sent, 1)
        if outcome.refused:
            load.counts.add_refused(now, due, outcome.refused)
        if outcome.retried:
            load.counts.retried.update(outcome.retried)
        if outcome.done and (next_due := load.next_due(self, now)) is not None:
            self.on_due(next_due, now)
        else:
            self.flush(now)
        if queue.paused_until > now:
            load.loop.call_later(queue.paused_until - now + 0.001, self._flush_if_open)
        if load.draining and queue.idle:
            load.call_drained(self)

    def _flush_if_open(self) -> None:
        if not self.lost:
            self.flush(time.monotonic())

    def _on_unexpected(self, error: UnexpectedResponse) -> None:
        self._call.cancel()
        self.end("WRONG_ANSWER", str(error))

    def _on_end(self, status: CallStatus) -> None:
        if not status.code:
            self.closed = self._load.closing
            self.end("" if self.closed else "OK", "the server ended the call")
            return
        error = client_error(status)
        self.end(error.reason, str(error))


def client_error(status: CallStatus) -> ClientError:
    """Returns the error of `tidegate.client` for the status of a call."""
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    return status_error(code, status.message, status.trailers)


async def make_light_runners(load: LoadGenerator, task: Task, stack: AsyncExitStack) -> list[LightCallRunner]:
    """Connects, and makes the runners for the calls of a task."""
    plan = task.plan
    open_fields: dict[str, Any] = {"model": plan.model, "version": plan.version, "existence": pb.EXISTENCE_MUST_BE_NEW}
    rows = encode_rows(task.values) if plan.block is None and task.make_encoding is None else []

    def encoding(names: list[str], offset: int) -> Encoding:
        if task.make_encoding is not None:
            return task.make_encoding(names, task.values, offset)
        if plan.block is None:
            return PredictEncoding(pb.Open(stream_id=names[0], **open_fields), rows, offset)
        return PredictBlocksEncoding(pb.OpenStreams(stream_ids=names, **open_fields), task.values, offset)

    connections = [await Connection.open(plan.address) for _ in range(task.connections)]
    for connection in connections:
        stack.callback(connection.close)
    return [
        LightCallRunner(load, len(names), connections[index % len(connections)], encoding(names, offset))
        for index, (names, offset) in enumerate(task.streams())
    ]
