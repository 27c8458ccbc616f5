"""One stream: a view of a session that sends one timestep at a time."""

import asyncio
from collections.abc import AsyncIterator

from tidegate.client import arguments
from tidegate.client.errors import InvalidArgument, InvalidTimestep, StepGap
from tidegate.client.inputs import Packer, Values, rows_in_order
from tidegate.client.message import Repeat
from tidegate.client.results import Group
from tidegate.client.session import Session
from tidegate.client.types import Prediction
from tidegate.client.view import Rows, View, pipeline
from tidegate.core.spec import STEP_MAX
from tidegate.v1 import tidegate_pb2 as pb

Pending = asyncio.Future[Prediction]


class Stream(View):
    """An open stream. Made by `Client.open`.

    Attributes:
        model: what runs it.
        owner: the token by which the server knows that it is the same client who opens it again.

    """

    single_stream = True
    _are, _were, _them = "the stream is", "the stream was", "it"

    def __init__(self, session: Session, stream_id: str, ask: pb.OpenStreams) -> None:
        super().__init__(session, [stream_id], ask)
        (self._member,) = self._members
        self._index = self._member.stream

    def __repr__(self) -> str:
        return f"<Stream {self.stream_id}, next step {self.next_step}, {self.reconnects} reconnects>"

    @property
    def stream_id(self) -> str:
        """Its name."""
        return self._member.stream_id

    @property
    def kind(self) -> str:
        """How `Client.open` found it: "new", "resumed" or "taken_over"."""
        return self._member.kind

    @property
    def epoch(self) -> int:
        """Rises with every open of the stream, those after a break among them; for logs."""
        return self._member.epoch

    @property
    def next_step(self) -> int:
        """The number that the next timestep will have."""
        return int(self._next_steps[0])

    @property
    def durable_step(self) -> int:
        """The last timestep whose state is stored, as far as the server has told."""
        return int(self._durable_steps[0])

    async def start(self) -> None:
        """Waits until the stream is open; called by `Client.open`."""
        await super().start()
        self._pack = Packer(self.model.features)

    async def step(self, values: Values, *, step: int | None = None, group: Group | None = None) -> Prediction:
        """Sends one timestep and waits for its prediction. Several may be in flight; they are answered in order.

        A break of the connection is mended unseen. Waits for room while `buffer_max` timesteps are kept that the server
        has not stored. When cancelled later than that, the timestep is applied all the same, and its prediction dropped.

        Args:
            values: (features,) numbers in the model's order and units, or what has names (a mapping, a pandas Series, a namedtuple,
                ...), which is read by them; NaN, or a name left out, means missing. None does not.
            step: its number, when it is not the next one: an earlier timestep, whose answer is asked for again with the values
                that it had. None or 0 for the next one.
            group: timesteps that belong together; when one is refused, none of them behind it is applied.

        Raises:
            InvalidTimestep: values or step are wrong; what can be seen from here was not sent.
            TimestepRefused: it was not applied; the stream stays usable, and timesteps sent behind it move up.
            AnswerLost: it was applied, but the prediction is gone; the stream stays usable.
            StreamLost, StreamRefused: the stream can no longer be used from here.

        """
        if step is None and group is None and not self._submit_lock.locked() and self._window.has_room(self._index):
            self._session.check_process()
            return await self._add(self._read(values)[1], None)  # what most steps need, in as few calls
        return await (await self._submit(values, step, group))

    async def predict(self, rows: Rows[Values]) -> AsyncIterator[Prediction]:
        """Sends row after row, as many ahead as the server allows, and yields the predictions in order.

        The quick way to replay history. Rows of an asynchronous iterable may come as slowly as they like: a prediction
        is yielded as soon as it is there. When left early, rows that were read ahead are applied all the same.

        Raises:
            InvalidArgument: `rows` is nothing that can be iterated over.
            TimestepRefused: a row was refused. No row behind it was applied; `next_step` says where to go on.
            StreamLost, StreamRefused: the stream can no longer be used from here.

        """
        group = Group()
        rows = rows_in_order(rows, self.model.features)
        async for prediction in pipeline("rows", rows, lambda row: self._submit(row, None, group), lambda: self.window):
            yield prediction

    async def _submit(self, values: Values, step: int | None, group: Group | None) -> Pending:
        """Puts a timestep in line, once there is room; gives a future of its answer."""
        self._session.check_process()
        try:
            number, packed = self._read(values, step)
        except InvalidTimestep:
            if group is not None:
                async with self._submit_lock:  # those before it in the group come first
                    group.failed = True
            raise
        if number and number != self.next_step:
            self._check()
            return self._submit_repeat(packed, number)
        if self._submit_lock.locked() or not self._window.has_room(self._index):
            async with self._submit_lock:
                while self._ended is None and not self._window.has_room(self._index):
                    await self._session.wait_for_room()
                return self._add(packed, group)
        return self._add(packed, group)

    def _add(self, packed: bytes, group: Group | None) -> Pending:
        if self._ended is not None or self._closing:
            self._check()
        pending: Pending = self._session.future()
        if group is not None and group.failed:
            pending.cancel()
        else:
            self._session.submit(self._buffer, self._index, packed, pending, group)
        return pending

    def _submit_repeat(self, packed: bytes, step: int) -> Pending:
        if step > self.next_step:
            raise StepGap(
                f"step: got {step}, expected {self.next_step}; send the timesteps from {self.next_step} on",
                "STEP_GAP",
                field="step",
                next_step=self.next_step,
            )
        if step > self._window.answered.item(self._index):
            raise InvalidTimestep(
                f"step: {step} is in flight already; wait for its prediction",
                "INVALID_FIELD",
                field="step",
                next_step=self.next_step,
            )
        pending: Pending = self._session.future()
        self._window.add_repeat(Repeat(self._buffer, self._index, step, packed, pending))
        self._session.wake()
        return pending

    def _read(self, values: Values, step: int | None = None) -> tuple[int, bytes]:
        """What a caller gives: a number, 0 for the next one, and the values, packed."""
        try:
            return 0 if step is None else arguments.integer("step", step, 0, STEP_MAX), self._pack(values)
        except InvalidArgument as error:
            raise InvalidTimestep(str(error), error.reason, field=error.field, next_step=self.next_step) from None
