"""One stream: a view of a session that sends one timestep at a time."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from tidegate.client import arguments
from tidegate.client.errors import InvalidArgument, InvalidTimestep, StepGap
from tidegate.client.inputs import Values, rows_in_order
from tidegate.client.message import Repeat
from tidegate.client.results import Group
from tidegate.client.session import Session
from tidegate.client.tensors import StreamInputs, row_packer
from tidegate.client.types import Prediction
from tidegate.client.view import Rows, View, pipeline
from tidegate.core.spec import STEP_MAX
from tidegate.v1 import tidegate_pb2 as pb

Pending = asyncio.Future[Prediction]


class Stream(View):
    """An open stream. Made by `Client.open`.

    Attributes:
        model: the model of the stream. Another version of it after a move.
        owner: the token by which the server recognizes this client when it opens the stream again.

    """

    single_stream = True
    _noun = "stream"

    def __init__(
        self, session: Session, stream_id: str, options: pb.OpenStreams, inputs: Sequence[StreamInputs] = ()
    ) -> None:
        super().__init__(session, [stream_id], options, inputs)
        (self._member,) = self._members
        self._index = self._member.stream

    def __repr__(self) -> str:
        return f"<Stream {self.stream_id}, next step {self.next_step}, {self.reconnects} reconnects>"

    @property
    def stream_id(self) -> str:
        """The stream's name."""
        return self._member.stream_id

    @property
    def kind(self) -> str:
        """How `Client.open` opened it: "new", "resumed" or "taken_over"."""
        return self._member.kind

    @property
    def version(self) -> str:
        """The version that runs the stream now. It may change between two timesteps, unless the stream was opened with a version."""
        return self.model.version

    @property
    def moved(self) -> str:
        """How the stream came to its state when it moved to another version last; empty when it has not moved.

        "rewarmed": its last timesteps were replayed into the new version. "reset": it began there without a state. "moved": it is not
        known, because the stream moved while the client was not connected.
        """
        return self._member.moved

    @property
    def epoch(self) -> int:
        """A number that rises with every open of the stream, also after a disconnect; for logs."""
        return self._member.epoch

    @property
    def next_step(self) -> int:
        """The number of the next timestep."""
        return int(self._next_steps[0])

    @property
    def durable_step(self) -> int:
        """The last timestep whose state is stored, as far as the server has reported."""
        return int(self._durable_steps[0])

    async def start(self) -> None:
        """Waits until the stream is open. Called by `Client.open`."""
        await super().start()
        self._pack = row_packer(self.model)

    async def step(self, values: Values, *, step: int | None = None, group: Group | None = None) -> Prediction:
        """Sends one timestep and waits for its prediction. Several may be in flight; they are answered in order.

        Reconnects when the connection breaks. Waits while the resend buffer has `buffer_max` timesteps that the server has not stored. A
        call that is cancelled after that does not undo the timestep: it is applied, and its prediction is dropped.

        Args:
            values: (features,) numbers in the model's order and units; or named values (a mapping, a pandas Series, a namedtuple, ...),
                which are read by name. NaN, or a missing name, means that the value is missing. None is refused. A model with other
                inputs takes a mapping with an array for each of them, or one array where it has a single one.
            step: the number of an earlier timestep, to get its answer again with the same values. None or 0 for the next timestep.
            group: timesteps that depend on each other: when one is refused, none of the later ones is applied.

        Raises:
            InvalidTimestep: values or step are wrong. Nothing was sent if the client can check it.
            TimestepRefused: it was not applied. The stream stays usable, and the later timesteps move up by one.
            AnswerLost: it was applied, but its prediction is lost. The stream stays usable.
            StreamLost, StreamRefused: the stream can no longer be used.

        """
        if step is None and group is None and not self._submit_lock.locked() and self._window.has_room(self._index):
            self._session.check_process()
            return await self._add(self._packed(values), None)  # the fast path of most steps
        return await (await self._submit(values, step, group))

    async def predict(self, rows: Rows[Values]) -> AsyncIterator[Prediction]:
        """Sends row after row, as many ahead as the server allows, and yields the predictions in order.

        This is the fast way to replay history. An asynchronous iterable may be slow: each prediction is yielded as soon as it is there.
        When the loop is left early, rows that were read ahead are applied all the same.

        Raises:
            InvalidArgument: `rows` is not iterable.
            TimestepRefused: a row was refused. No later row was applied; `next_step` says where to continue.
            StreamLost, StreamRefused: the stream can no longer be used.

        """
        group = Group()
        if self.model.layout.plain:
            rows = rows_in_order(rows, self.model.features)
        async for prediction in pipeline("rows", rows, lambda row: self._submit(row, None, group), lambda: self.window):
            yield prediction

    async def _submit(self, values: Values, step: int | None, group: Group | None) -> Pending:
        """Submits a timestep once there is room. Returns the future of its answer."""
        self._session.check_process()
        try:
            number, packed = self._read(values, step)
        except InvalidTimestep:
            if group is not None:
                async with self._submit_lock:  # after the earlier timesteps of the group
                    group.failed = True
            raise
        if number and number != self.next_step:
            self._check()
            return self._submit_repeat(packed, number)
        if self._submit_lock.locked() or not self._window.has_room(self._index):
            async with self._submit_lock:
                while self._error is None and not self._window.has_room(self._index):
                    await self._session.wait_for_room()
                return self._add(packed, group)
        return self._add(packed, group)

    def _add(self, packed: bytes, group: Group | None) -> Pending:
        if self._error is not None or self._closing:
            self._check()
        pending: Pending = self._session.future()
        if group is not None and group.failed:
            pending.cancel()
        else:
            self._session.submit(self._buffer, self._index, packed, pending, group)
        return pending

    def _submit_repeat(self, packed: bytes, step: int) -> Pending:
        next_step = self.next_step
        if step > next_step:
            message = f"step: got {step}, expected {next_step}; send the timesteps from {next_step} on"
            raise StepGap(message, "STEP_GAP", field="step", next_step=next_step)
        if step > self._window.answered.item(self._index):
            message = f"step: {step} is in flight already; wait for its prediction"
            raise InvalidTimestep(message, "INVALID_FIELD", field="step", next_step=next_step)
        pending: Pending = self._session.future()
        self._window.add_repeat(Repeat(self._buffer, self._index, step, packed, pending))
        self._session.wake()
        return pending

    def _read(self, values: Values, step: int | None = None) -> tuple[int, bytes]:
        """Checks what a caller gives. Returns the number, 0 for the next timestep, and the packed values."""
        try:
            number = 0 if step is None else arguments.integer("step", step, 0, STEP_MAX)
        except InvalidArgument as error:
            raise self._invalid(error) from None
        return number, self._packed(values)

    def _packed(self, values: Values) -> bytes:
        try:
            return self._pack(values)
        except InvalidArgument as error:
            raise self._invalid(error) from None

    def _invalid(self, error: InvalidArgument) -> InvalidTimestep:
        return InvalidTimestep(str(error), error.reason, field=error.field, next_step=self.next_step)
