"""Tell seven exercises apart by a smartwatch, while they are being done, by a person that the model has never seen.

    python examples/classify.py [--quick] [--folder demo/classify]

All recordings of the person are streamed at once, as a gateway would: one call, a stream a recording, a block of timesteps
every 20 ms. Each stream has its own state, and its label may change with every timestep.
"""

import common
import numpy as np
from rich.table import Table

from tidegate.blocking import Block, Client
from tidegate.training.data.series import Floats

PERSON = "10"
RATE = 50  # timesteps a second
SECONDS = (1, 2, 5, 10, 15, 20)  # the shortest recording has 24
# Of seven exercises one in seven is guessed by chance.
LEAST = 0.5


def main() -> None:
    """Runs the example."""
    here = common.given(__doc__, "classify")
    version, held_out = common.next_version(here.models / "watch"), here.folder / "held_out.csv"

    common.title(f"1. Learn from nine persons; person {PERSON} is held out")
    common.run(
        "train", "--data", "watch", "--task", "classify", "--hold-out", PERSON, "--kernel", 25, "--filters", 64,
        "--dropout", 0.5, "--chunk", 400, "--lanes", 16, "--epochs", 4 if here.quick else 40, "--keep", "last",
        "--models", here.models, "--version", version, "--out", here.folder / f"run-{version}", "--held-out", held_out,
    )  # fmt: skip

    common.title("2. Serve it, and stream all recordings of that person side by side")
    rows = common.read_rows(held_out)
    names = list(dict.fromkeys(row["recording"] for row in rows))
    recordings = [[row for row in rows if row["recording"] == name] for name in names]
    truth = [recording[0]["exercise"] for recording in recordings]
    with (
        common.serving(here.models, here.folder / "data") as (address, _),
        Client(address) as client,
        client.block(len(names), model="watch") as block,
    ):
        features = [feature.name for feature in block.model.features]
        classes = block.model.outputs[0].targets
        x = [common.numbers(recording, features) for recording in recordings]
        probability = stream(block, x)

    common.title("3. What it said at the end of each recording")
    labels = [np.array([classes[place] for place in prediction.argmax(axis=1)]) for prediction in probability]
    show(names, truth, labels, probability)

    common.title("4. Was it worth it?")
    common.say("share of the recordings that are classified correctly, by second")
    for second in SECONDS:
        correct = [label[second * RATE - 1] == true for label, true in zip(labels, truth, strict=True)]
        common.say(f"{second:>4} s  {np.mean(correct):>4.0%}  {'█' * round(40 * np.mean(correct))}")
    every = np.mean(np.concatenate([label == true for label, true in zip(labels, truth, strict=True)]))
    common.check(f"{every:.0%} of the timesteps are classified correctly, {LEAST:.0%} or more", holds=every >= LEAST)
    folder = here.models / "watch" / str(version)
    same = all(
        common.same_bits(folder, one, {"probability": prediction})
        for one, prediction in zip(x, probability, strict=True)
    )
    common.check("what was served is what the graph says by itself, to the last bit", holds=same)


def stream(block: Block, x: list[Floats]) -> list[Floats]:
    """Sends recordings, each (time, features), timestep by timestep and side by side: of each (time, classes)."""
    present = [[row for row, one in enumerate(x) if step < len(one)] for step in range(max(map(len, x)))]
    blocks = ((np.stack([x[row][step] for row in rows]), rows) for step, rows in enumerate(present))
    probability: list[list[Floats]] = [[] for _ in x]
    for rows, answer in zip(present, block.predict(blocks), strict=True):
        for row, prediction in zip(rows, answer["probability"], strict=True):
            probability[row].append(prediction)
    return [np.stack(prediction) for prediction in probability]


def show(names: list[str], truth: list[str], labels: list[np.ndarray], probability: list[Floats]) -> None:
    """Prints a line for each recording."""
    table = Table(box=None, header_style="bold")
    for name in ("recording", "seconds", "true", "said", "with", "right in"):
        table.add_column(name, justify="left" if name in ("recording", "true", "said") else "right")
    for name, true, label, prediction in zip(names, truth, labels, probability, strict=True):
        mark = "" if label[-1] == true else "[red]"
        right = f"{np.mean(label == true):.0%} of timesteps"
        table.add_row(
            name, f"{len(label) / RATE:.0f}", true, f"{mark}{label[-1]}", f"{prediction[-1].max():.0%}", right
        )
    common.console.print(table)


if __name__ == "__main__":
    main()
