"""The pages are complete and lead somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
PAGES = [
    Path(name)
    for name in subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
    if not name.startswith("models/")
]
MODULES = [
    path.relative_to(ROOT)
    for package in ("serving", "training")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files(page: Path) -> None:
    """A file that is renamed takes its links with it."""
    links = [link for link in LINK.findall((ROOT / page).read_text("utf-8")) if "://" not in link]
    missing = [link for link in links if not (ROOT / page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_the_architecture_names_every_file(module: Path) -> None:
    """Who looks for a file finds it with a sentence about it."""
    assert f"(../{module})" in (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_the_readme_is_short() -> None:
    """It is read from top to bottom; what is looked up stands in docs."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 140
