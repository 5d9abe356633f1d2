"""Hooks before a commit run what `make lint` runs, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]


def lint_commands() -> list[str]:
    """The commands of the target `lint`, with its variable filled in."""
    makefile = (CHECKOUT / "Makefile").read_text()
    [binaries] = re.findall(r"^BIN = (.*)$", makefile, re.MULTILINE)
    [recipe] = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    return [line.strip().replace("$(BIN)", binaries) for line in recipe.splitlines()]


def test_hooks_are_the_commands_of_make_lint() -> None:
    [repository] = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    hooks = repository["hooks"]
    assert [hook["entry"] for hook in hooks] == lint_commands()
    for hook in hooks:
        assert hook["language"] == "system"
        assert hook["pass_filenames"] is False  # each looks at the whole tree
    assert {"ruff", "ruff-format", "mypy"} <= {hook["id"] for hook in hooks}
