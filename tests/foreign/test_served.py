"""Graphs that other people exported are served as they are, with the bits of a plain onnxruntime loop.

Each is described by what `tidegate inspect` has written, or by a few lines where it cannot know.
"""

from pathlib import Path

import pytest

from tests.foreign.graphs import EXPORTED, PUBLISHED, SLOW_IF_PUBLISHED, Foreign
from tests.foreign.served import check_served, check_survival


@pytest.mark.parametrize("foreign", SLOW_IF_PUBLISHED)
async def test_it_is_served_with_the_bits_of_its_loop(tmp_path: Path, packages_cache: Path, foreign: Foreign) -> None:
    """One stream alone, several at once on `Predict`, and several in blocks: each has the bits of its own loop."""
    await check_served(tmp_path, packages_cache, foreign)


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [PUBLISHED, EXPORTED], ids=["published", "exported"])
async def test_streams_of_each_survive_a_kill(tmp_path: Path, packages_cache: Path, foreign: list[Foreign]) -> None:
    """`kill -9` of their server between two timesteps: streams go on where they were, with the bits of their loops."""
    await check_survival(tmp_path, packages_cache, *foreign)
