"""What the documentation names is there: files, folders and links between pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [
    CHECKOUT / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
    *sorted((CHECKOUT / "docs").glob("*.md")),
    *sorted((CHECKOUT / "tools" / "demo").glob("*.md")),
    CHECKOUT / "bench" / "README.md",
]
PATH = re.compile(
    r"(?<![\w/.-])(?:appliance|bench|conf|docs|engine|examples|recipes|tests|tools)/[\w./-]*\w"
)
LINK = re.compile(r"\]\(([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_paths_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    missing = {path for path in PATH.findall(text) if not (CHECKOUT / path).exists()}
    for link in LINK.findall(text):
        if "://" not in link and not (page.parent / link).exists():
            missing.add(link)
    assert not missing


def test_a_path_that_does_not_exist_is_found() -> None:
    found = PATH.findall("see `engine/loader.py:load`, mine/engine/x.py and tools/demo/.")
    assert found == ["engine/loader.py", "tools/demo"]
    assert not (CHECKOUT / found[0]).exists()
