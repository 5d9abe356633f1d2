"""README shows the examples as they are: neither can change without the other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.examples.conftest import CHECKOUT, EXAMPLES

README = (CHECKOUT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHOWN = ("ask.sh", "background.sh", "offline.py", "stream.py")


def code(name: str) -> str:
    """An example without the comment or docstring that it opens with."""
    text = (EXAMPLES / name).read_text()
    if name.endswith(".sh"):
        return re.sub(r"\A(#.*\n)+\n", "", text)
    opening = ast.parse(text).body[0]
    assert isinstance(opening, ast.Expr)
    return "".join(text.splitlines(keepends=True)[opening.end_lineno :]).lstrip("\n")


@pytest.mark.parametrize("name", SHOWN)
def test_a_block_of_readme_is_the_example(name: str) -> None:
    language = {"py": "python", "sh": "sh"}[name.rpartition(".")[2]]
    assert (language, code(name)) in BLOCKS


def test_readme_shows_no_python_that_is_no_example() -> None:
    shown = [text for language, text in BLOCKS if language == "python"]
    assert sorted(shown) == sorted(code(name) for name in SHOWN if name.endswith(".py"))


def test_readme_names_every_example() -> None:
    for example in EXAMPLES.iterdir():
        assert f"`examples/{example.name}`" in README


@pytest.mark.parametrize("example", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_an_example_is_short_and_opens_by_saying_what_it_is(example: Path) -> None:
    text = example.read_text()
    opening = text.removeprefix("#!/bin/sh\n")
    assert opening.startswith(("# ", '"""'))
    assert len(text.splitlines()) < 40
