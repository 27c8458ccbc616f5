"""When the losses of training and validation part: the network goes on to learn the training part, and nothing else."""

from collections.abc import Sequence

from tidegate.training.learning.epoch import Epoch

# By so much the training loss has fallen and the validation score has risen since the best epoch: more than a score wavers
# from one epoch to the next.
PART = 0.05
# The last epochs, whose mean is compared.
LAST = 3


def parting(epochs: Sequence[Epoch], best: Epoch) -> str:
    """A sentence that says since when and by how much the losses part, and what to try; empty if they do not."""
    last = [epoch for epoch in epochs if epoch.number > best.number][-LAST:]
    if len(last) < LAST:
        return ""
    loss, score = (sum(values) / LAST for values in zip(*((epoch.loss, epoch.score) for epoch in last), strict=True))
    if loss > (1.0 - PART) * best.loss or score < (1.0 + PART) * best.score:
        return ""
    return (
        f"training and validation part after epoch {best.number}: the loss fell from {best.loss:.3f} to {loss:.3f} while the "
        f"validation score rose from {best.score:.3f} to {score:.3f}; the network learns the training part by heart: try a "
        f"smaller --hidden, --dropout 0.2, fewer --columns, or more rows"
    )
