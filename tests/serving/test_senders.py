"""Who sends to a worker, and whether a call does so alone."""

from tidegate.runtime.senders import QUIET_SECONDS, SINGLE_TIMESTEPS, Senders

ONE, OTHER = 1, 2


def test_a_call_is_alone_until_another_one_sends() -> None:
    """Also before it has sent anything."""
    senders = Senders()
    assert senders.is_alone(ONE, 0.0)
    senders.note(ONE, 0.0)
    senders.note(ONE, 1.0)
    assert senders.is_alone(ONE, 1.0)
    senders.note(OTHER, 1.5)
    assert not senders.is_alone(ONE, 1.5)
    assert not senders.is_alone(OTHER, 1.5)


def test_calls_that_take_turns_are_not_alone() -> None:
    """Whichever of them asks, after whichever has sent."""
    senders = Senders()
    for turn in range(4):
        senders.note((ONE, OTHER)[turn % 2], turn * QUIET_SECONDS / 4)
        if turn:
            assert not senders.is_alone(ONE, turn * QUIET_SECONDS / 4)
            assert not senders.is_alone(OTHER, turn * QUIET_SECONDS / 4)


def test_a_call_is_alone_again_when_the_others_are_quiet() -> None:
    """After the time, counted from the last thing that one of them sent; for timesteps that come one at a time too."""
    senders = Senders()
    senders.note(SINGLE_TIMESTEPS, 10.0)
    senders.note(ONE, 10.5)
    assert not senders.is_alone(ONE, 10.0 + QUIET_SECONDS * 0.99)
    assert senders.is_alone(ONE, 10.0 + QUIET_SECONDS)
    assert not senders.is_alone(OTHER, 10.5 + QUIET_SECONDS * 0.99)
