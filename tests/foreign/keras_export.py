"""Exports two small networks with Keras, as its guide does: `python keras_export.py FOLDER`.

It runs in a process of its own, with the packages of `packages.KERAS` on its path.
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras  # type: ignore[import-not-found] # it is downloaded by the tests
import numpy as np

# Weights are drawn by chance, and the graphs are compared by their hashes nowhere; a fixed seed keeps failures alike.
keras.utils.set_random_seed(1)
FEATURES, HIDDEN = 3, 4


def lstm_with_states() -> "keras.Model":
    """One timestep of an LSTM with h and c as inputs and outputs."""
    x = keras.Input(batch_shape=(None, 1, FEATURES))
    h, c = keras.Input(batch_shape=(None, HIDDEN), name="h"), keras.Input(batch_shape=(None, HIDDEN), name="c")
    y, h_next, c_next = keras.layers.LSTM(HIDDEN, return_state=True)(x, initial_state=[h, c])
    return keras.Model([x, h, c], [keras.layers.Dense(1)(y), h_next, c_next])


def stateful_lstm() -> "keras.Model":
    """One timestep of an LSTM that keeps its state itself: it does not survive the export."""
    x = keras.Input(batch_shape=(1, 1, FEATURES))
    return keras.Model(x, keras.layers.Dense(1)(keras.layers.LSTM(HIDDEN, stateful=True)(x)))


def main(folder: Path) -> None:
    """Writes both."""
    for name, model in (("states", lstm_with_states()), ("stateful", stateful_lstm())):
        zeros = [np.zeros([size or 1 for size in tensor.shape], np.float32) for tensor in model.inputs]
        model.predict(zeros if len(zeros) > 1 else zeros[0], verbose=0)  # the exporter wants a model that was called
        model.export(folder / f"{name}.onnx", format="onnx", verbose=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
