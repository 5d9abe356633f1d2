"""Every example runs and prints what it promises."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

from tests.examples.conftest import EXAMPLES, run
from tests.serving.conftest import Server, serving


def test_every_example_is_run_here() -> None:
    tested = Path(__file__).read_text()
    for example in EXAMPLES.iterdir():
        assert f'run("{example.name}"' in tested


def test_ask(demo: Server, tmp_path: Path) -> None:
    answer = json.loads(run("ask.sh", demo, tmp_path))
    said = answer["choices"][0]["message"]["content"]
    assert said == "I see a red circle on a white background."


def test_stream(demo: Server, tmp_path: Path) -> None:
    assert run("stream.py", demo, tmp_path) == "The background is white."


def test_structured(demo: Server, tmp_path: Path) -> None:
    said = run("structured.py", demo, tmp_path)
    assert said == "shape: star colour: blue background: white\n"


def test_tools(demo: Server, tmp_path: Path) -> None:
    called, answered = run("tools.py", demo, tmp_path).splitlines()
    assert re.fullmatch(r"Paint: The wall is (black|blue|green|red|white|yellow) now\.", called)
    assert re.fullmatch(r"\d{3} tokens of prompt, the tool's answer among them", answered)


def test_background(tmp_path: Path) -> None:
    """The command that `make serve` would run is run with it, on a free port."""
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    # these tests may run below a `make` themselves, whose flags would reach this one
    plain = f"env -u MAKEFLAGS -u MAKELEVEL {shutil.which('make')} --no-print-directory --dry-run"
    make.write_text(f'#!/bin/sh\nexec {plain} "$@"\n')
    make.chmod(0o755)
    *_, serve = run("background.sh", None, tmp_path, path=str(make.parent)).splitlines()
    command, *overrides = shlex.split(serve)
    assert command.endswith("bin/appliance")
    with serving(*overrides, "engine.threads=1") as server:
        assert run("stream.py", server, tmp_path) == "The background is green."


def test_offline(tmp_path: Path) -> None:
    said = run("offline.py", None, tmp_path)
    assert said == "I see a red circle on a white background.\n"


def test_images(demo: Server, tmp_path: Path) -> None:
    assert "second" in run("images.py", demo, tmp_path).lower()


def test_video(demo: Server, tmp_path: Path) -> None:
    assert "right" in run("video.py", demo, tmp_path).lower()


def test_logprobs(demo: Server, tmp_path: Path) -> None:
    lines = run("logprobs.py", demo, tmp_path).splitlines()
    assert 3 <= len(lines) <= 12
    for line in lines:
        token, others = line.split(": ", 1)
        assert others.startswith((f"{token} -0.", f"{token} 0."))


def test_completions(demo: Server, tmp_path: Path) -> None:
    assert "model" in run("completions.py", demo, tmp_path)


def test_embeddings(demo: Server, tmp_path: Path) -> None:
    """What is alike in meaning is not the demo's to say: it was not trained for it."""
    lines = run("embeddings.py", demo, tmp_path).splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(-1 <= score <= 1 for score in scores)
