"""What a person sees while a network learns."""

import io

from rich.console import Console

from tidegate.training.cli.progress import FitProgress
from tidegate.training.learning.epoch import Epoch


def epoch(number: int) -> Epoch:
    """An epoch of ten, a second each."""
    return Epoch(number, loss=0.75, score=0.625, learning_rate=1e-3, elapsed_s=float(number), progress=number / 10)


def shown(*, terminal: bool) -> str:
    """What three epochs print."""
    screen = io.StringIO()
    with FitProgress(Console(file=screen, force_terminal=terminal, width=120)) as progress:
        for number in (1, 2, 3):
            progress.show(epoch(number), epoch(1))
        progress.note("stopped [here]")
    return screen.getvalue()


def test_a_terminal_gets_a_bar_with_loss_and_time_left() -> None:
    """The bar tells epoch, loss, score, best and the time that is left."""
    printed = shown(terminal=True)
    assert "epoch 3" in printed
    assert "loss 0.7500" in printed
    assert "score 0.6250" in printed
    assert "left" in printed


def test_a_log_gets_plain_lines_now_and_then() -> None:
    """Elsewhere there is a line at once, then one every few seconds, without control codes."""
    printed = shown(terminal=False)
    assert printed == "epoch 1: loss 0.7500, score 0.6250, best 0.6250, 1 s, at most 9 s left\nstopped [here]\n"
