"""A lane on the light client of `frames`: it costs much less than the server that it measures.

Sending never waits: what the server has no window for is kept in the call, and `lane` bounds how much that can be. So a server
that is slow to read cannot keep this side from taking its answers.
"""

import time
from contextlib import AsyncExitStack
from typing import Any

import grpc

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.bench.frames import Call, Connection, Ending
from serving.bench.lane import Lane, Verdict
from serving.bench.load import Load, Runner
from serving.bench.speech import Many, Single, Speech, WrongAnswer, packed
from serving.bench.words import Task
from serving.client.errors import ClientError, error_of


class Light(Runner):
    """One lane and its call."""

    def __init__(self, load: Load, streams: int, connection: Connection, speech: Speech) -> None:
        super().__init__(load, streams)
        self.lane = Lane(streams, 1, closed=load.closed)
        self._connection = connection
        self._speech = speech
        self._call: Call

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        return self.lane.quiet

    def begin(self) -> None:
        """Opens the streams."""
        self._call = self._connection.call(self._speech.method, self._on_opened, self._on_end)
        self._call.send(self._speech.open())

    def due(self, at: float, now: float) -> None:
        """The next timestep of every row is due."""
        self._load.tally.due(at, self.streams)
        if not self.gone and self.lane.add(at):
            self.flush(now)
        else:
            self._load.tally.dropped(at, self.streams)

    def flush(self, now: float) -> None:
        """Sends what can be sent."""
        lane = self.lane
        while lane.ready(now):
            self._call.send(self._speech.message(lane.send(now), lane.behind))

    def abandon(self) -> list[tuple[float, int]]:
        """Gives up what was not answered."""
        return self.lane.abandon()

    def close(self) -> None:
        """Asks the server to forget the streams."""
        self._call.send(self._speech.close(), last=True)

    def cut(self) -> None:
        """Ends the call at once."""
        self._call.cut()
        self.over("DEADLINE_EXCEEDED", "the server did not answer in time")

    def _on_opened(self, message: bytes) -> None:
        try:
            refused = self._speech.opened(message)
        except WrongAnswer as wrong:
            self._wrong(wrong)
            return
        self.refused += refused
        self.streams -= refused.total()
        if not self.streams:
            self._call.cut()
            self.over("TOO_MANY_STREAMS")  # or what else was said of each
            return
        load = self._load
        window = min(load.plan.ahead, self._speech.window) if load.closed else self._speech.window
        self.lane = Lane(self.streams, window, closed=load.closed)
        self._call.on_message = self._on_answer
        self.opened.set_result(None)

    def _on_answer(self, message: bytes) -> None:
        now = time.monotonic()
        expected = self.lane.expected()
        try:
            verdict = self._speech.verdict(message, expected)
        except WrongAnswer as wrong:
            self._wrong(wrong)
            return
        if isinstance(verdict, Verdict):
            if expected:
                self._settle(verdict, now)
            else:
                self._wrong(WrongAnswer("got an answer when nothing had been asked"))
        elif verdict is not None:
            self._load.tally.lost[verdict.reason] += verdict.streams

    def _settle(self, verdict: Verdict, now: float) -> None:
        lane, load = self.lane, self._load
        outcome = lane.settle(verdict, now)
        if load.abandoned:
            return  # counted as unanswered already
        due, sent = outcome.due, outcome.sent
        if outcome.applied:
            load.tally.answered(now, due, sent, outcome.applied - len(outcome.late))
            for late in outcome.late:
                load.tally.answered(now, late, sent, 1)
        if outcome.refused:
            load.tally.let_go(now, due, outcome.refused)
        if outcome.again:
            load.tally.again.update(outcome.again)
        if outcome.over and (following := load.answered(self, now)) is not None:
            self.due(following, now)
        else:
            self.flush(now)
        if lane.paused_until > now:
            load.loop.call_later(lane.paused_until - now + 0.001, self._resume)
        if load.draining and lane.quiet:
            load.drained(self)

    def _resume(self) -> None:
        if not self.gone:
            self.flush(time.monotonic())

    def _wrong(self, wrong: WrongAnswer) -> None:
        self._call.cut()
        self.over("WRONG_ANSWER", str(wrong))

    def _on_end(self, ending: Ending) -> None:
        if not ending.code:
            self.closed = self._load.closing
            self.over("" if self.closed else "OK", "the server ended the call")
            return
        why = said(ending)
        self.over(why.reason, str(why))


def said(ending: Ending) -> ClientError:
    """What the server said when it ended a call, as `serving.client` tells it."""
    code = next((code for code in grpc.StatusCode if code.value[0] == ending.code), grpc.StatusCode.UNKNOWN)
    return error_of(code, ending.message, ending.trailers)


async def make_light(load: Load, task: Task, stack: AsyncExitStack) -> list[Light]:
    """Connects and makes the lanes of a task."""
    plan = task.plan
    new: dict[str, Any] = {"model": plan.model, "version": plan.version, "existence": pb.EXISTENCE_MUST_BE_NEW}
    rows = packed(task.values) if plan.block is None and task.speech is None else []

    def speech(names: list[str], offset: int) -> Speech:
        if task.speech is not None:
            return task.speech(names, task.values, offset)
        if plan.block is None:
            return Single(pb.Open(stream_id=names[0], **new), rows, offset)
        return Many(pb.OpenStreams(stream_ids=names, **new), task.values, offset)

    connections = [await Connection.open(plan.address) for _ in range(task.connections)]
    for connection in connections:
        stack.callback(connection.close)
    return [
        Light(load, len(names), connections[place % len(connections)], speech(names, offset))
        for place, (names, offset) in enumerate(task.streams())
    ]
