"""Recurrent layers. Each computes the same in two ways: `sequence()` trains, `step()` is exported and served.

A layer is exported as one fused ONNX node where there is a good one, else as a Gemm and a few small nodes. Its weights
become buffers in the layout of those nodes before the export, so that the graph slices no weights. To add a cell, write
such a class and enter it in `CELLS`.
"""

from tidegate.training.network.cells.activation import ACTIVATIONS
from tidegate.training.network.cells.cell import Cell, State
from tidegate.training.network.cells.convolution import Convolution
from tidegate.training.network.cells.gru import GRU
from tidegate.training.network.cells.lstm import LSTM, Peephole, PeepholePrevious
from tidegate.training.network.cells.rnn import RNN

__all__ = ["ACTIVATIONS", "CELLS", "GRU", "LSTM", "RNN", "Cell", "Convolution", "Peephole", "PeepholePrevious", "State"]

CELLS: dict[str, type[Cell]] = {
    "lstm": LSTM,
    "gru": GRU,
    "peephole": Peephole,
    "peephole-previous": PeepholePrevious,
    "rnn": RNN,
}
