"""A whole sequence of an LSTM of any kind, with a backward pass written by hand.

torch has fast kernels for the plain LSTM only; a loop of differentiable operations costs ten times as much, most of it
in keeping the graph. Here the loop holds what must be done timestep by timestep, in place; what can be done for all
timesteps at once stands before or after it.

The gates lie side by side in the order g, i, f, o (g is the candidate): so the sigmoids are neighbours on the way
forward, and those that get their gradient through the cell state, g, i and f, are on the way back.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.cells.activation import Activation

G, I, F, O = range(4)  # noqa: E741 - the gates' names in every paper


def lstm_sequence(
    projected: Tensor, r: Tensor, p: Tensor | None, looking_back: int, state: tuple[Tensor, Tensor], squash: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM over a sequence.

    Args:
        projected: (time, batch, 4 * hidden), inputs times weights plus bias.
        r: (4 * hidden, hidden), the recurrent weights.
        p: (3, hidden), the peepholes of i, f and o; None for none.
        looking_back: how many of i, f, o look at the cell state before the step: 0, 2 (then o looks at the one after it) or 3.
        state: h and c, [1, batch, hidden] each.
        squash: the activation of candidate and output.

    Returns:
        (time, batch, hidden), and h and c after the last timestep. Can be differentiated once.

    """
    h, c = state
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (projected, r, p, h, c)):
        y, h, c = _LSTMSequence.apply(projected, r, p, h, c, looking_back, squash)  # type: ignore[no-untyped-call]
    else:
        y, _, cells = _run(projected, r, p, h[0], c[0], looking_back, squash, keep=False)
        h, c = y[-1:].clone(), cells
    return y, h, c


class _LSTMSequence(torch.autograd.Function):
    """`lstm_sequence` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        r: Tensor,
        p: Tensor | None,
        h: Tensor,
        c: Tensor,
        looking_back: int,
        squash: Activation,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, gates, cells = _run(projected, r, p, h[0], c[0], looking_back, squash, keep=True)
        ctx.save_for_backward(r, p, h, y, gates, cells)
        ctx.looking_back, ctx.squash = looking_back, squash
        return y, y[-1:].clone(), cells[-1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor, dc_last: Tensor) -> tuple[Tensor | None, ...]:
        r, p, h, y, gates, cells = ctx.saved_tensors
        dgates, into_c, along_c, past_c = _slopes(p, gates, cells, ctx.looking_back, ctx.squash)
        # (1 + time, batch, hidden): the gradient of h before each timestep, and last that of the final h
        dh = torch.cat([torch.zeros_like(h), dy])
        dh[-1:] += dh_last
        dc = dc_last[0].clone()
        dc_gates = dc.unsqueeze(1)  # (batch, 1, hidden), the same memory
        before, after = dh[:-1].unbind(0), dh[1:].unbind(0)
        through_c, through_h = dgates[:, :, :O].unbind(0), dgates[:, :, O].unbind(0)
        rows = dgates.flatten(2).unbind(0)
        into, along, past = into_c.unbind(0), along_c.unbind(0), None if past_c is None else past_c.unbind(0)
        for t in reversed(range(len(y))):
            through_h[t].mul_(after[t])
            dc.addcmul_(into[t], after[t])
            through_c[t].mul_(dc_gates)
            dc.mul_(along[t])
            if past is not None:
                dc.addcmul_(past[t], after[t])
            before[t].addmm_(rows[t], r)
        flat = dgates.flatten(2)  # (time, batch, 4 * hidden)
        dr = flat[1:].flatten(0, 1).t() @ y[:-1].flatten(0, 1)
        dr.addmm_(flat[0].t(), h[0])
        dp = None if p is None else _peephole_gradient(dgates, cells, ctx.looking_back)
        return flat, dr, dp, dh[:1], dc.unsqueeze(0), None, None


def _run(
    projected: Tensor,
    r: Tensor,
    p: Tensor | None,
    h: Tensor,
    c: Tensor,
    looking_back: int,
    squash: Activation,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The timesteps one after the other.

    Returns:
        y, (time, batch, hidden); and of each timestep if they are to be kept, else of the last: the gates after their
        activations, (time, batch, 4, hidden); the cell states, one more at the front.

    """
    steps, batch, width = projected.shape
    hidden = width // 4
    y = projected.new_empty(steps, batch, hidden)
    gates = projected.new_empty(steps if keep else 1, batch, 4, hidden)
    cells = projected.new_empty(1 + steps if keep else 1, batch, hidden)
    cells[0] = c
    olds, news = (cells[:-1], cells[1:]) if keep else (cells, cells)
    r = r.t().contiguous()  # (hidden, 4 * hidden); read by every timestep
    seen_before = None if p is None else p[:looking_back]
    seen_after = p[2] if p is not None and looking_back == 2 else None
    early = slice(I, O if looking_back == 2 else None)  # the gates that are known before the new cell state is
    for x, out, row, looking, known, g, i, f, o, old, seen, new in zip(
        projected.unbind(0),
        y.unbind(0),
        _rows(gates.flatten(2), keep),
        _rows(gates[:, :, I : I + looking_back], keep),
        _rows(gates[:, :, early], keep),
        *(_rows(gates[:, :, gate], keep) for gate in (G, I, F, O)),
        _rows(olds, keep),
        _rows(olds.unsqueeze(2), keep),
        _rows(news, keep),
        strict=False,  # what is not kept repeats for ever
    ):
        torch.addmm(x, h, r, out=row)
        if seen_before is not None:
            looking.addcmul_(seen, seen_before)
        known.sigmoid_()
        g.copy_(squash.value(g))
        torch.mul(f, old, out=new).addcmul_(i, g)
        if seen_after is not None:
            o.addcmul_(new, seen_after).sigmoid_()
        torch.mul(o, squash.value(new), out=out)
        h = out
    return y, gates, cells


def _rows(kept: Tensor, keep: bool) -> Iterable[Tensor]:
    """A view for each timestep, or the same for all."""
    return kept.unbind(0) if keep else repeat(kept[0])


def _slopes(
    p: Tensor | None, gates: Tensor, cells: Tensor, looking_back: int, squash: Activation
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What a gradient is multiplied by on its way back, for all timesteps at once.

    Returns:
        (time, batch, 4, hidden): to before the activations, from c (g, i, f) and from h (o); and, (time, batch, hidden) each:
        from h to c; from c to the c before; from h to the c before, where o looks at that.

    """
    g, i, f, o = gates.unbind(2)
    squashed = squash.value(cells[1:])
    slopes = torch.empty_like(gates)
    sigmoids = gates[:, :, I:]
    torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1, out=slopes[:, :, I:])
    torch.mul(squash.slope(g), i, out=slopes[:, :, G])
    slopes[:, :, I] *= g
    slopes[:, :, F] *= cells[:-1]
    slopes[:, :, O] *= squashed
    into_c = squash.slope(squashed).mul_(o)
    along_c, past_c = f, None
    if p is not None:
        along_c = torch.addcmul(f, slopes[:, :, I], p[0]).addcmul_(slopes[:, :, F], p[1])
        if looking_back == 2:
            into_c.addcmul_(slopes[:, :, O], p[2])
        else:
            past_c = slopes[:, :, O] * p[2]
    return slopes, into_c, along_c, past_c


def _peephole_gradient(dgates: Tensor, cells: Tensor, looking_back: int) -> Tensor:
    """(3, hidden): each gate's gradient times the cell state it looked at."""
    seen_by_o = cells[1:] if looking_back == 2 else cells[:-1]
    seen = (cells[:-1], cells[:-1], seen_by_o)
    return torch.stack([(dgates[:, :, I + index] * cell).sum((0, 1)) for index, cell in enumerate(seen)])
