"""What `make serve` runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def runs(*arguments: str) -> str:
    """The last line of a dry run, blanks apart."""
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("", "recipe=demo"),
        ("ARGS=server.port=9000", "recipe=demo server.port=9000"),
        ("ARGS=task=plan model.max_len=9", "recipe=demo task=plan model.max_len=9"),
        ("ARGS=recipe=qwen2_vl server.port=9000", "recipe=qwen2_vl server.port=9000"),
        ("ARGS=--config-dir mine recipe=own", "--config-dir mine recipe=own"),
        ("ARGS=model.path=/folder", "model.path=/folder"),
        ("RECIPE=smollm2", "recipe=smollm2"),
    ],
)
def test_the_demo_is_kept_unless_another_is_named(given: str, served: str) -> None:
    assert runs("serve", *([given] if given else [])) == f".venv/bin/appliance {served}"
