"""Whoever silences a check of the code says why, beside it."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = ("appliance", "bench", "engine", "examples", "tests", "tools")
IGNORE = re.compile(r"#\s*(?:noqa|nosec|ruff: ?noqa)\b.*")
REASONED = re.compile(r"# noqa: [A-Z]+\d+(?:, [A-Z]+\d+)* - \w.*")


def unreasoned(text: str) -> list[str]:
    """Ignores of a file that name no rule or give no reason."""
    return [found for found in IGNORE.findall(text) if not REASONED.fullmatch(found)]


def test_every_ignore_names_its_rule_and_its_reason() -> None:
    files = [file for name in FOLDERS for file in (CHECKOUT / name).rglob("*.py")]
    texts = {file: file.read_text() for file in files if file != Path(__file__).resolve()}
    assert {file: found for file, text in texts.items() if (found := unreasoned(text))} == {}
    assert sum(len(IGNORE.findall(text)) for text in texts.values()) > 5, "none was looked at"


def test_an_ignore_without_rule_or_reason_is_found() -> None:
    for bare in ("# noqa", "# noqa: S603", "# noqa: S603 -", "# noqa - a reason", "# nosec"):
        assert unreasoned(f"call()  {bare}\n") == [bare]
    assert unreasoned("call()  # noqa: S603, B023 - a reason\n") == []
