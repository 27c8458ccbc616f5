"""Search for good settings with two processes that share one journal; the best are learned in full, and served.

    python examples/tune.py [--quick] [--folder demo/tune]

Both processes run the same command. Each takes the next trial from the journal, and the last to finish learns the best
settings in full. One that is killed is not missed: the other tries its settings again.
"""

import re
import subprocess
import sys
from pathlib import Path

import common
import numpy as np

from tidegate.blocking import Client

PROCESSES = 2
AIRPORT = "LGA"
HORIZONS = (1, 6)  # hours; a timestep is an hour


def main() -> None:
    """Runs the example."""
    here = common.given(__doc__, "tune")
    version, held_out = common.next_version(here.models / "weather"), here.folder / "held_out.csv"
    trials = 6 if here.quick else 30

    common.title(f"1. Search, in {PROCESSES} processes that were started with the same command")
    command = common.tidegate(
        "tune", "--data", "weather", "--target", "temp", "--horizons", ",".join(map(str, HORIZONS)),
        "--calendar", "day,year", "--search", "hidden=16,32;learning_rate=1e-3..1e-2", "--trials", trials,
        "--trial-epochs", 2 if here.quick else 8, "--epochs", 4 if here.quick else 30, "--held-out", held_out,
        "--models", here.models, "--version", version, "--out", here.folder / f"search-{version}",
    )  # fmt: skip
    logs = [here.folder / f"process-{number}.log" for number in range(1, PROCESSES + 1)]
    done = sum(search(command, logs))

    common.title("2. Serve the best, and stream what it has not seen")
    rows = [row for row in common.read_rows(held_out) if row["origin"] == AIRPORT]
    with (
        common.serving(here.models, here.folder / "data") as (address, _),
        Client(address) as client,
        client.open(model="weather") as stream,
    ):
        x = common.numbers(rows, [feature.name for feature in stream.model.features])
        predictions = list(stream.predict(x))
    served = {name: np.stack([prediction[name] for prediction in predictions]) for name in predictions[0]}

    common.title("3. Was it worth it?")
    common.check(f"the processes did {done} trials together, as many as were asked for", holds=done == trials)
    temperature = common.numbers(rows, ["temp"])[:, 0]
    for place, hours in enumerate(HORIZONS):
        now, later, prediction = temperature[:-hours], temperature[hours:], served["forecast"][:-hours, place, 0]
        known = ~np.isnan(now + later)
        error, naive = np.abs(prediction - later)[known].mean(), np.abs(now - later)[known].mean()
        common.check(f"{hours} h: error {error:.2f} °F, below persistence, which has {naive:.2f}", holds=error < naive)
    same = common.same_bits(here.models / "weather" / str(version), x, served)
    common.check("what was served is what the graph says by itself, to the last bit", holds=same)


def search(command: list[str], logs: list[Path]) -> list[int]:
    """Runs the command once for each log, side by side, and shows what they did; how many trials each."""
    running = []
    for log in logs:
        with log.open("w", encoding="utf-8") as file:
            running.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
    codes = [process.wait() for process in running]
    texts = [log.read_text("utf-8") for log in logs]
    if any(codes):
        common.say("\n".join(texts))
        sys.exit(1)
    trials = [re.findall(r"^trial \d+: .*$", text, re.MULTILINE) for text in texts]
    for number, lines in enumerate(trials, start=1):
        common.say("\n".join([f"process {number}, {len(lines)} trials:", *lines, ""]))
    last = next(text for text in texts if "training it in full" in text)
    common.say(last[last.rfind("\n", 0, last.index("training it in full")) + 1 :].rstrip())
    return [len(lines) for lines in trials]


if __name__ == "__main__":
    main()
