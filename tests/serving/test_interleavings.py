"""Streams under any order of events, compared with a plain Python model of each."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines import key, load
from tests.graphs import running_sum
from tidegate.core.engine import Engine, RowStatus
from tidegate.core.errors import TakenOver
from tidegate.core.slots import Slots
from tidegate.core.spec import Checkpoint
from tidegate.core.streams import Lease, Phase, Stream, StreamTable, checkpoint_rows

MODEL = load(running_sum())
STREAMS = 3


@dataclass
class ExpectedStream:
    """The expected content of a stream, without slots, rings or arrays."""

    sums: list[float] = field(default_factory=list)  # the answer to each timestep
    values: list[float] = field(default_factory=list)  # and its values
    forgotten: int = 0  # how many of these, from the first on, are no longer remembered
    epoch: int = 0
    stream: Stream | None = None  # while it is in this process
    lease: Lease | None = None  # while a call has it open
    checkpoint: Checkpoint | None = None  # what the store has
    stored: int = 0  # and its last timestep
    forgotten_there: int = 0  # and how many of its answers are no longer remembered

    @property
    def live(self) -> bool:
        """Whether it should have a slot."""
        return self.stream is not None and self.stream.phase is Phase.LIVE

    def judge(self, number: int, value: float) -> RowStatus:
        """The expected outcome of a timestep."""
        expected = len(self.sums) + 1
        if number > expected:
            return RowStatus.GAP
        if 0 < number < expected:
            # The bits decide: -0.0 is another value than 0.0.
            same = np.float32(self.values[number - 1]).tobytes() == np.float32(value).tobytes()
            return RowStatus.DUPLICATE if same or number <= self.forgotten else RowStatus.VALUES_DIFFER
        return RowStatus.APPLIED if np.isfinite(value) else RowStatus.NON_FINITE_VALUE

    def remember(self, answers: int) -> None:
        """Forgets answers that do not fit into a ring of that size."""
        self.forgotten = max(self.forgotten, len(self.sums) - answers)

    def lose(self) -> None:
        """State that is not stored is lost, and no call has it open."""
        self.stream = self.lease = None
        del self.sums[self.stored :], self.values[self.stored :]
        self.forgotten = self.forgotten_there


class World:
    """One server after another, over one store."""

    def __init__(self) -> None:
        self.models = [ExpectedStream() for _ in range(STREAMS)]
        self.start(3)

    def start(self, answers: int) -> None:
        """Starts with empty slots, as after a crash: state that was not stored is lost."""
        self.slots = Slots(MODEL.spec, STREAMS, answers)
        self.engine, self.streams = Engine(MODEL, self.slots), StreamTable()
        for model in self.models:
            model.lose()

    def open(self, name: int) -> None:
        """Begins, resumes or takes over."""
        model, old = self.models[name], self.models[name].lease
        model.epoch += 1
        if model.stream is not None and model.live:
            model.lease = self.streams.take_over(model.stream, model.epoch)
        else:
            if model.stream is not None:  # parked while a call has it open: that call loses the stream
                self.streams.drop(model.stream, TakenOver(str(name), model.epoch))
            slot = self.slots.acquire(key(str(name)))
            if model.checkpoint is not None:
                model.lease = self.streams.resume(model.checkpoint, self.slots, slot, model.epoch)
                model.remember(self.slots.answers)
            else:
                model.lease = self.streams.begin(key(str(name)), self.slots, slot, model.epoch)
        model.stream = model.lease.stream
        assert old is None or isinstance(old.ended, TakenOver)

    def release(self, name: int) -> None:
        """The call that has it open ends."""
        model = self.models[name]
        if model.lease is not None and model.live:
            self.streams.release(model.lease)
            model.lease = None

    def save(self, names: set[int]) -> None:
        """Stores some streams in one commit, changed or not."""
        models = [self.models[name] for name in names if self.models[name].live]
        streams = [model.stream for model in models if model.stream is not None]
        for model, checkpoint in zip(models, checkpoint_rows(streams) if streams else (), strict=True):
            model.checkpoint, model.stored = checkpoint, len(model.sums)
            model.forgotten_there = model.forgotten
            assert model.stream is not None
            assert checkpoint.key == model.stream.key
            assert (checkpoint.epoch, checkpoint.step) == (model.epoch, model.stored)
            self.slots.durable_step[model.stream.slot] = checkpoint.step

    def park(self, name: int) -> None:
        """Stores a stream and parks it."""
        model = self.models[name]
        if model.stream is not None and model.live:
            self.save({name})
            self.streams.park(model.stream)
            if model.lease is None:
                model.stream = None

    def wake(self, name: int) -> None:
        """Puts a stream that a call has open back into a slot."""
        model = self.models[name]
        if model.stream is not None and not model.live:
            self.streams.wake(model.stream, model.checkpoint, self.slots.acquire(key(str(name))))
            model.remember(self.slots.answers)

    def drop(self, name: int) -> None:
        """Another server has taken the stream over: state that is not stored is lost."""
        model = self.models[name]
        if model.stream is not None:
            self.streams.drop(model.stream, TakenOver(str(name), model.epoch + 1))
            assert model.lease is None or model.lease.ended is not None
            model.lose()

    def batch(self, sent: dict[int, tuple[int | None, float]]) -> None:
        """Runs one batch over the live streams among `sent`, and checks the result row by row."""
        rows = [
            (model, model.stream, 0 if offset is None else max(1, len(model.sums) + 1 + offset), value)
            for model, (offset, value) in ((self.models[name], what) for name, what in sent.items())
            if model.stream is not None and model.live
        ]
        if not rows:
            return
        expected = [model.judge(number, value) for model, _, number, value in rows]
        result = self.engine.run(
            np.array([stream.slot for _, stream, _, _ in rows], np.int64),
            np.array([number for _, _, number, _ in rows], np.int64),
            np.array([[value] for *_, value in rows], np.float32),
        )
        codes = [0] * len(rows) if result.statuses is None else result.statuses.tolist()
        assert [RowStatus(code) for code in codes] == expected
        place = 0
        for row, (model, _, number, value) in enumerate(rows):
            assert result.steps[row] == (number or len(model.sums) + 1)
            if expected[row] is RowStatus.APPLIED:
                model.values.append(value)
                model.sums.append((model.sums[-1] if model.sums else 0.0) + value)
                model.remember(self.slots.answers)
                assert result.outputs[0][place].tolist() == [model.sums[-1]]
                assert result.outputs[1][place] == len(model.sums)
                place += 1
        assert result.missing == 0  # this model refuses NaN
        assert not result.failures

    def check(self) -> None:
        """Compares all streams with their models."""
        held = [model.stream for model in self.models if model.stream is not None]
        live = [model for model in self.models if model.live]
        assert sorted(stream.key for stream in self.streams) == sorted(stream.key for stream in held)
        assert len(self.slots) == len(live)
        unsaved = [model for model in live if model.stored < len(model.sums)]
        assert self.slots.unsaved().tolist() == sorted(model.stream.slot for model in unsaved if model.stream)
        for model in self.models:
            if model.lease is not None:
                assert model.lease.ended is None
                assert model.lease.durable_step == model.stored
            if model.stream is not None:
                assert model.stream.lease is model.lease
                assert model.stream.epoch == model.epoch
                assert self.streams.find(model.stream.key) is model.stream
        for model in live:
            self.check_row(model)

    def check_row(self, model: ExpectedStream) -> None:
        """Compares the row of a live stream with its model."""
        stream, sums = model.stream, model.sums
        assert stream is not None
        assert self.slots.keys[stream.slot] == stream.key
        assert stream.step == len(sums)
        assert stream.is_saved == (model.stored == len(sums))
        total, trail, count = self.slots.gather(np.array([stream.slot]))
        assert trail[0].tolist() == [0.0, 0.0, *sums][-2:]
        assert total[0, 0] == trail[0, 1]
        assert count[0] == len(sums)
        for number in range(1, len(sums) + 1):
            packed = self.slots.find_answer(stream.slot, number)
            if number > model.forgotten:
                assert np.frombuffer(packed[0], np.float32).tolist() == [sums[number - 1]]
            else:
                assert packed == ()


which = st.integers(0, STREAMS - 1)
# The difference of a timestep's number from the next one; None: it has no number.
offsets = st.one_of(st.just(0), st.none(), st.integers(-4, 3))
values = st.one_of(st.integers(-9, 9).map(float), st.sampled_from([np.nan, np.inf, -np.inf]))
batches = st.dictionaries(which, st.tuples(offsets, values), min_size=1)
good_batches = st.dictionaries(which, st.tuples(st.just(0), values), min_size=1)
events = st.one_of(
    st.tuples(st.just("batch"), batches),
    st.tuples(st.just("batch"), good_batches),
    st.tuples(st.just("batch"), good_batches),
    st.tuples(st.just("open"), which),
    st.tuples(st.just("open"), which),
    st.tuples(st.just("park"), which),
    st.tuples(st.just("wake"), which),
    st.tuples(st.sampled_from(["release", "drop"]), which),
    st.tuples(st.just("save"), st.sets(which, min_size=1)),
    st.tuples(st.just("start"), st.integers(1, 5)),
)


# Short sequences would end before anything is stored, parked and opened again.
@settings(max_examples=200, derandomize=True)
@given(st.lists(events, min_size=40, max_size=60))
def test_any_interleaving_leaves_every_stream_as_it_should_be(story: list) -> None:
    """Steps, duplicates, gaps, NaN, saves, parking, waking, take-overs, crashes: none ever affects another stream."""
    world = World()
    for what, detail in story:
        getattr(world, what)(detail)
        world.check()
