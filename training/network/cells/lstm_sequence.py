"""A whole sequence of an LSTM of any kind, with a hand-written backward pass.

torch has fast kernels for the plain LSTM only. A loop of differentiable operations spends half its time on the autograd
graph (`benchmarks/cells.py`). Here the loop does, in place, only what needs the timestep before. The rest is done for all
timesteps at once, before or after the loop.

The gates lie side by side in torch's order, i, f, g, o (g is the candidate). So i and f are neighbours, which always see
the previous cell state; and so are i, f and g, whose gradient comes through the cell state.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tidegate.training.network.cells.activation import Activation


def lstm_sequence(
    projected: Tensor,
    r: Tensor,
    p: Tensor | None,
    h: Tensor,
    c: Tensor,
    activation_fn: Activation,
    *,
    o_sees_previous: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run an LSTM over a sequence.

    Args:
        projected: (time, batch, 4 * hidden), inputs times weights plus bias.
        r: (4 * hidden, hidden), the recurrent weights.
        p: (3, hidden), the peepholes of i, f and o; None for none.
        h: [1, batch, hidden], the hidden state.
        c: [1, batch, hidden], the cell state.
        activation_fn: of candidate and output.
        o_sees_previous: o sees the previous cell state, as i and f do; else the new one.

    Returns:
        (time, batch, hidden), and h and c after the last timestep. Can be differentiated once.

    """
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (projected, r, p, h, c)):
        y, h, c = _LSTMSequence.apply(projected, r, p, h, c, activation_fn, o_sees_previous)  # type: ignore[no-untyped-call]
        return y, h, c
    y, _, cells = _run(projected, r, p, h[0], c[0], activation_fn, o_sees_previous=o_sees_previous, keep=False)
    return y, y[-1:].clone(), cells


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
        activation_fn: Activation,
        o_sees_previous: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, gates, cells = _run(projected, r, p, h[0], c[0], activation_fn, o_sees_previous=o_sees_previous, keep=True)
        ctx.save_for_backward(r, p, h, y, gates, cells)
        ctx.activation_fn, ctx.o_sees_previous = activation_fn, o_sees_previous
        return y, y[-1:].clone(), cells[-1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor, dc_last: Tensor) -> tuple[Tensor | None, ...]:
        r, p, h, y, gates, cells = ctx.saved_tensors
        # The factors of each gradient. The first becomes the gradient before the activations.
        dgates, into_c, along_c, past_c = _slopes(
            p, gates, cells, ctx.activation_fn, o_sees_previous=ctx.o_sees_previous
        )
        # (1 + time, batch, hidden): the gradient of h before each timestep, and last that of the final h
        dh = torch.cat([torch.zeros_like(h), dy])
        dh[-1:] += dh_last
        dc = dc_last[0].clone()
        dc_gates = dc.unsqueeze(1)  # (batch, 1, hidden), the same memory
        before, after = dh[:-1].unbind(0), dh[1:].unbind(0)
        through_c, through_h = dgates[:, :, :3].unbind(0), dgates[:, :, 3].unbind(0)
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
        dp = None if p is None else _peephole_gradient(dgates, cells, o_sees_previous=ctx.o_sees_previous)
        return flat, dr, dp, dh[:1], dc.unsqueeze(0), None, None


def _run(
    projected: Tensor,
    r: Tensor,
    p: Tensor | None,
    h: Tensor,
    c: Tensor,
    activation_fn: Activation,
    *,
    o_sees_previous: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The timesteps one after the other.

    Returns:
        y, (time, batch, hidden); the gates after their activations, (time, batch, 4, hidden); and the cell states, one more
        at the front. Gates and cell states are those of each timestep with `keep`, else of the last.

    """
    steps, batch, width = projected.shape
    hidden = width // 4
    y = projected.new_empty(steps, batch, hidden)
    gates = projected.new_empty(steps if keep else 1, batch, 4, hidden)
    cells = projected.new_empty(1 + steps if keep else 1, batch, hidden)
    cells[0] = c
    olds, news = (cells[:-1], cells[1:]) if keep else (cells, cells)
    r = r.t().contiguous()  # (hidden, 4 * hidden); read by every timestep
    p_if, p_o = (None, None) if p is None else (p[:2], p[2])
    for x, out, row, i_f, i, f, g, o, old, seen, new in zip(
        projected.unbind(0),
        y.unbind(0),
        _rows(gates.flatten(2), keep),
        _rows(gates[:, :, :2], keep),
        *(_rows(gate, keep) for gate in gates.unbind(2)),
        _rows(olds, keep),
        _rows(olds.unsqueeze(2), keep),
        _rows(news, keep),
        strict=False,  # without `keep` a view repeats for ever
    ):
        torch.addmm(x, h, r, out=row)
        if p_if is not None:
            i_f.addcmul_(seen, p_if)
        if p_o is not None and o_sees_previous:
            o.addcmul_(old, p_o)
        i_f.sigmoid_()
        g.copy_(activation_fn.value(g))
        torch.mul(f, old, out=new).addcmul_(i, g)
        if p_o is not None and not o_sees_previous:
            o.addcmul_(new, p_o)
        torch.mul(o.sigmoid_(), activation_fn.value(new), out=out)
        h = out
    return y, gates, cells


def _rows(kept: Tensor, keep: bool) -> Iterable[Tensor]:
    """A view for each timestep, or the same for all."""
    return kept.unbind(0) if keep else repeat(kept[0])


def _slopes(
    p: Tensor | None, gates: Tensor, cells: Tensor, activation_fn: Activation, *, o_sees_previous: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The factors of the gradients in the backward pass, for all timesteps at once.

    Returns:
        (time, batch, 4, hidden): to before the activations, from c (i, f, g) and from h (o); and, (time, batch, hidden) each:
        from h to c; from c to the previous c; from h to the previous c, where o sees that.

    """
    i, f, g, o = gates.unbind(2)
    squashed = activation_fn.value(cells[1:])
    slopes = torch.addcmul(gates, gates, gates, value=-1)  # of sigmoids; g has its own below
    to_i, to_f, to_g, to_o = slopes.unbind(2)
    to_i *= g
    to_f *= cells[:-1]
    torch.mul(activation_fn.slope(g), i, out=to_g)
    to_o *= squashed
    into_c = activation_fn.slope(squashed).mul_(o)
    if p is None:
        return slopes, into_c, f, None
    along_c = torch.addcmul(f, to_i, p[0]).addcmul_(to_f, p[1])
    if o_sees_previous:
        return slopes, into_c, along_c, to_o * p[2]
    return slopes, into_c.addcmul_(to_o, p[2]), along_c, None


def _peephole_gradient(dgates: Tensor, cells: Tensor, *, o_sees_previous: bool) -> Tensor:
    """(3, hidden): the gradient of each gate times the cell state that it saw."""
    old, new = cells[:-1], cells[1:]
    i, f, _, o = dgates.unbind(2)
    return torch.stack(
        [(gate * cell).sum((0, 1)) for gate, cell in ((i, old), (f, old), (o, old if o_sees_previous else new))]
    )
