"""One stream: a view of a session that sends one timestep at a time."""

import asyncio
from collections.abc import AsyncIterator

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.client import arguments
from serving.client.buffer import Buffer
from serving.client.errors import ClientError, InvalidArgument, InvalidTimestep, StepGap, StreamLost
from serving.client.inputs import Packer, Values, rows_in_order
from serving.client.message import Repeat
from serving.client.results import Group
from serving.client.session import Session
from serving.client.source import Rows, Source
from serving.client.types import Model, Prediction
from serving.core.spec import STEP_MAX

Pending = asyncio.Future[Prediction]


class Stream:
    """An open stream. Made by `Client.open`.

    Attributes:
        stream_id: its name.
        model: what runs it.
        kind: how `Client.open` found it: "new", "resumed" or "taken_over".
        owner: the token by which the server knows that it is the same client who opens it again.
        epoch: rises with every open of the stream, those after a break among them; for logs.
        reconnects: how often it was opened again after a break.

    """

    model: Model
    alone = True

    def __init__(self, session: Session, stream_id: str, ask: pb.OpenStreams) -> None:
        self.owner = ask.owner
        self.reconnects = -1
        self._session = session
        self._window = session.window
        self._buffer: Buffer
        self._door = asyncio.Lock()  # who waits for room goes first
        self._ready = asyncio.Event()  # it was opened, or will never be
        self._over = asyncio.Event()
        self._closing = False
        self._lost: ClientError | None = None
        self._told = False  # whether anybody knows of it
        self._final: tuple[int, int] | None = None  # next and durable step, once nobody uses the stream
        (self._index,) = session.join(ask, [stream_id], self).tolist()
        self._member = session.member(self._index)

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
        return self._final[0] if self._final else self._window.next_steps.item(self._index)

    @property
    def durable_step(self) -> int:
        """The last timestep whose state is stored, as far as the server has told."""
        return self._final[1] if self._final else self._window.durable_steps.item(self._index)

    @property
    def window(self) -> int:
        """How many timesteps may be in flight; the server says."""
        return self._window.window

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
        if step is None and group is None and not self._door.locked() and self._window.has_room(self._index):
            self._session.check()
            return await self._add(self._read(values), None)  # what most steps need, in as few calls
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
        source = Source("rows", rows_in_order(rows, self.model.features))
        async for prediction in source.answers(lambda row: self._submit(row, None, group), lambda: self.window):
            yield prediction

    async def start(self) -> None:
        """Waits until the stream is open; called by `Client.open`."""
        await self._ready.wait()
        if not self.kind:  # one that was opened and has been lost since is entered: its error comes with its use
            self._check()

    async def close(self, *, forget: bool = False) -> None:
        """Ends the stream. Does nothing the second time.

        Waits until every timestep is answered and the server has stored them all, opening the stream again if need be.

        Args:
            forget: the server drops the stream and its state.

        Raises:
            InvalidArgument: `forget` is not True or False.
            ClientError: what ended the stream before that, unless it was raised to somebody already.

        """
        self._session.check()
        if not self._closing:
            forget = arguments.flag("forget", forget)
            self._closing = True
            self._session.close([self._member], forget=forget)
        await self._over.wait()
        if not self._told:
            self._check()

    def leave(self) -> None:
        """Lets go of the stream at once; the server parks it. Timesteps in flight may be applied or not."""
        if self._final is None:
            self._final = self.next_step, self.durable_step
            self._told = True
            self._lost = self._lost or StreamLost("the stream was left; open it again to go on")
            self._session.leave([self._member])
            self._over.set()

    # What the session tells --------------------------------------------------------------------------------------------

    def on_opened(self, place: int, buffer: Buffer, call: int) -> None:  # noqa: ARG002 - of the protocol
        """The stream is open, for the first time or again."""
        if not self._ready.is_set():
            self.model = buffer.model
            self._pack = Packer(buffer.model.features)
        self._buffer = buffer
        self.reconnects += 1
        self._ready.set()

    def on_lost(self, place: int, error: ClientError, *, told: bool, whole: bool) -> None:  # noqa: ARG002 - of the protocol
        """The stream can no longer be used."""
        self._lost = error
        self._told |= told
        self._ready.set()
        self._over.set()

    def on_closed(self, place: int) -> None:  # noqa: ARG002 - of the protocol
        """The stream is closed."""
        self._lost = StreamLost("the stream is closed; open it again to go on")
        self._told = True
        self._over.set()

    # Sending -----------------------------------------------------------------------------------------------------------

    async def _submit(self, values: Values, step: int | None, group: Group | None) -> Pending:
        """Puts a timestep in line, once there is room; gives a future of its answer."""
        self._session.check()
        try:
            number = 0 if step is None else arguments.whole("step", step, 0, STEP_MAX)
            packed = self._pack(values)
        except InvalidArgument as error:
            if group is not None:
                async with self._door:  # those before it in the group come first
                    group.fallen = True
            raise self._invalid(error) from None
        if number and number != self.next_step:
            self._check()
            return self._ask_again(packed, number)
        if self._door.locked() or not self._window.has_room(self._index):
            async with self._door:
                while self._lost is None and not self._window.has_room(self._index):
                    await self._session.room()
                return self._add(packed, group)
        return self._add(packed, group)

    def _add(self, packed: bytes, group: Group | None) -> Pending:
        if self._lost is not None or self._closing:
            self._check()
        pending: Pending = self._session.future()
        if group is not None and group.fallen:
            pending.cancel()
        else:
            self._session.add(self._buffer, self._index, packed, pending, group)
        return pending

    def _ask_again(self, packed: bytes, step: int) -> Pending:
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
        self._window.ask_again(Repeat(self._buffer, self._index, step, packed, pending))
        self._session.wake()
        return pending

    def _read(self, values: Values) -> bytes:
        """What a caller gives, packed."""
        try:
            return self._pack(values)
        except InvalidArgument as error:
            raise self._invalid(error) from None

    def _invalid(self, error: InvalidArgument) -> InvalidTimestep:
        return InvalidTimestep(str(error), error.reason, field=error.field, next_step=self.next_step)

    def _check(self) -> None:
        """Raises what has ended the stream, if anything has."""
        if self._lost is not None:
            self._told = True
            raise self._lost.with_traceback(None)  # or it would grow with every call that is made in vain
        if self._closing:
            raise StreamLost("the stream is being closed; open it again to go on")
