"""Your own network: an LSTM trained in plain PyTorch, loaded from its `.pt` file, exported, served and streamed.

    python examples/own_network.py [--quick] [--folder demo/own_network]

A heater warms a room. The first part of this script stands for your own project: it knows nothing of Tidegate. The second
needs three things of it: the weights, a method `step`, and a description.
"""

from pathlib import Path

import common
import numpy as np
import torch
from torch import Tensor, nn

from tidegate.blocking import Client
from tidegate.training import Feature, Output, State, export
from tidegate.training.data.series import Floats

ROWS = 6000  # minutes
TRAINED_ON = 4800
HIDDEN = 24
HORIZONS = (1, 30)  # minutes ahead


class Rooms(nn.Module):
    """A plain LSTM and a linear layer. `mean` and `std` (features,) scale the inputs, and the outputs back."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("std", torch.ones(2))
        self.lstm = nn.LSTM(2, HIDDEN)
        self.head = nn.Linear(HIDDEN, len(HORIZONS))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(time, batch, 2) raw -> the temperature at each horizon, (time, batch, horizons), and the last state."""
        y, state = self.lstm((x - self.mean) / self.std, state)
        return x[..., :1] + self.head(y) * self.std[0], state

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One timestep: (batch, 2) -> (batch, horizons, 1 target) and the next state. This is what is exported."""
        y, state = self.forward(x.unsqueeze(0), state)
        return y[0].unsqueeze(-1), state


def main() -> None:
    """Runs the example."""
    here = common.given(__doc__, "own_network")
    rows, weights = make_room(), here.folder / "rooms.pt"

    common.title("1. Somewhere else: train in plain PyTorch and save the weights")
    train_elsewhere(rows, weights, epochs=20 if here.quick else 80)
    common.say(f"weights: {weights}")

    common.title("2. Load the weights, describe the step, and export it")
    network = Rooms()
    network.load_state_dict(torch.load(weights, weights_only=True))
    exported = export(
        network,
        name="rooms",
        features=[Feature("temperature", "°C"), Feature("heater", "%")],
        outputs=[Output("forecast", targets=["temperature"], units=["°C"], horizons=HORIZONS)],
        state=[State("h", (1, "batch", HIDDEN)), State("c", (1, "batch", HIDDEN))],
        period_s=60,
        samples=rows[:TRAINED_ON],
        models=here.models,
    )
    common.say(f"model: {exported.folder}")
    common.say(f"graph and network differ by {exported.parity.outputs:.1e} standard deviations at most")

    common.title("3. Serve it, and stream what it has not seen")
    x = rows[TRAINED_ON:]
    with (
        common.serving(here.models, here.folder / f"data-{exported.folder.name}") as (address, _),
        Client(address) as client,
        client.open("living-room", model="rooms") as stream,
    ):
        forecast = np.stack([prediction["forecast"] for prediction in stream.predict(x)])  # (time, horizons, 1)

    common.title("4. Is it the same network?")
    with torch.no_grad():
        begin = (torch.zeros(1, 1, HIDDEN), torch.zeros(1, 1, HIDDEN))
        in_torch = network(torch.from_numpy(x[:, None]), begin)[0][:, 0].numpy()
    apart = np.abs(forecast[..., 0] - in_torch).max()
    common.check(f"what was served is what PyTorch says over the whole sequence, to {apart:.0e} °C", holds=apart < 1e-3)
    common.check(
        "it is what the graph says by itself, to the last bit",
        holds=common.same_bits(exported.folder, x, {"forecast": forecast}),
    )
    ahead = HORIZONS[1]
    error, naive = (np.abs(prediction[:-ahead] - x[ahead:, 0]).mean() for prediction in (forecast[:, 1, 0], x[:, 0]))
    common.check(
        f"{ahead} minutes ahead its error is {error:.2f} °C, below persistence, which has {naive:.2f}",
        holds=error < naive,
    )


def make_room() -> Floats:
    """(minutes, 2): the temperature of a room, and its heater, which is switched now and then."""
    rng = np.random.default_rng(0)
    heater = np.repeat(rng.choice([0.0, 50.0, 100.0], ROWS // 60), 60)
    temperature = np.empty(ROWS)
    now, wall = 18.0, 18.0
    for minute in range(ROWS):
        wall += (now - wall) / 120 + (10.0 - wall) / 600
        now += (wall - now) / 15 + heater[minute] / 1000
        temperature[minute] = now + rng.normal(0, 0.02)
    return np.stack([temperature, heater], axis=1).astype(np.float32)


def train_elsewhere(rows: Floats, weights: Path, epochs: int) -> None:
    """Train on sequences of four hours."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # faster for so small a network
    network, length = Rooms(), 240
    known = torch.from_numpy(rows[:TRAINED_ON])
    network.mean.copy_(known.mean(0))
    network.std.copy_(known.std(0))
    last = TRAINED_ON - max(HORIZONS)
    lanes = torch.arange(0, last - length, 60)
    x = torch.stack([known[first : first + length] for first in lanes], dim=1)  # (time, lanes, 2)
    y = torch.stack(
        [torch.stack([known[first + ahead : first + ahead + length, 0] for ahead in HORIZONS], -1) for first in lanes],
        dim=1,
    )  # (time, lanes, horizons)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    begin = (torch.zeros(1, len(lanes), HIDDEN), torch.zeros(1, len(lanes), HIDDEN))
    for epoch in range(epochs):
        optimizer.zero_grad()
        loss = (network(x, begin)[0] - y).abs()[24:].mean()  # the first rows only warm the state up
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if epoch % 10 == 9:
            common.say(f"epoch {epoch + 1}: loss {loss.item():.3f} °C")
    torch.save(network.state_dict(), weights)


if __name__ == "__main__":
    main()
