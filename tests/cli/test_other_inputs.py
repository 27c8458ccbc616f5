"""Commands and models with inputs that a table of numbers does not have."""

from pathlib import Path

import numpy as np

from tests.graphs import write_model
from tests.servers import run_command, serve
from tests.typed_graphs import scaled_sum, typed_sum


def test_a_command_that_cannot_feed_a_model_says_so(tmp_path: Path) -> None:
    """In one line that names the input: rows of numbers, random or from a file, have no second input."""
    rows = tmp_path / "rows.csv"
    rows.write_text("left,right\n1,2\n")
    with serve(write_model(tmp_path / "models", scaled_sum(np.int64))) as server:
        for command in (["stream", str(rows)], ["bench", "--seconds", "1"]):
            ended = run_command(*command, "--address", server.address)
            assert ended.returncode == 2
            assert ended.stderr.startswith(
                "error: model toy/1 takes 'scale' (int64 [1]), expected one vector of float32"
            )
            assert ended.stderr.count("\n") == 1


def test_models_as_json_names_the_inputs(tmp_path: Path) -> None:
    """With their types and shapes."""
    with serve(write_model(tmp_path, typed_sum(np.int64))) as server:
        ended = run_command("models", "--json", "--address", server.address)
    assert '"name": "x",' in ended.stdout
    assert '"type": "int64",' in ended.stdout
