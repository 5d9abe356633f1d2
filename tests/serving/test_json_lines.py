"""With `logging=json` whatever a server says is one JSON object a line, to whichever stream."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import progress
from appliance.config.schema import LoggingConfig
from appliance.lifecycle import Lifecycle
from appliance.log_lines import complain, configure
from tests.serving.conftest import Server, serving

HOSTILE = "a\nb\u2028c\x1b[2Jd\x85"


@pytest.fixture(scope="module")
def server(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    told = [f"model.path={checkpoint('llama')}", "model.name=tiny", "engine.threads=1"]
    with serving(*told, "media.image.limit=0", "logging=json", "server.api_keys=[key]") as server:
        yield server


def objects(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    return lines


def ask(server: Server, fields: dict[str, Any], key: str = "key") -> int:
    body = json.dumps({"model": "tiny", "prompt": "Once", "max_tokens": 2, **fields}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    asked = urllib.request.Request(f"{server.base_url}/v1/completions", body, headers)
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_every_line_from_start_to_end(server: Server) -> None:
    assert ask(server, {}) == 200
    assert ask(server, {"stream": True}) == 200
    assert ask(server, {HOSTILE: 1, "nobody_knows": HOSTILE}) == 200
    assert ask(server, {"n": 0}) == 400
    assert ask(server, {"model": HOSTILE}) == 404
    assert ask(server, {}, key="another") == 401
    assert server.status(f"/v1/{'x' * 3000}") == 401
    assert server.stop() == 0
    lines = objects(server.output)
    (told,) = [line for line in lines if line["message"] == "serving"]
    assert told["model"].startswith("tiny")
    assert told["keys"] == "1 accepted"
    assert told["address"] == server.base_url
    assert {"ready", "request"} <= {line["message"] for line in lines}
    assert [line["status"] for line in lines if line["message"] == "request"].count(200) == 3


def start(*told: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", *told]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "told",
    [
        ["recipe=nothing"],
        ["recipe=demo", "server.porf=1"],
        ["recipe=demo", "server.port=many"],
        ["recipe=demo", "server.api_keys_file=/nowhere/at/all"],
        ["model.path=/nowhere"],
        ["recipe=demo", "task=sing"],
        ["recipe=demo", "model.max_len=-1"],
        ["recipe=demo", "--such-a-flag"],
        ["recipe=demo", "chat.template=/nowhere.jinja"],
        ["recipe=demo", "server.host=256.0.0.1"],
    ],
    ids=" ".join,
)
def test_every_line_of_a_start_that_fails(told: list[str]) -> None:
    ended = start(*told, "logging=json")
    assert ended.returncode in (1, 2)
    assert objects(ended.stdout + ended.stderr)[-1]["level"] == "error"


def test_a_person_gets_plain_words() -> None:
    ended = start("recipe=nothing")
    assert ended.stderr.startswith("appliance: ")


def starred(text: str) -> str:
    return text.replace("secret", "***")


@pytest.fixture
def style() -> Iterator[Callable[[str], None]]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook
    yield lambda form: configure(LoggingConfig(form, "info"))
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook = hooks


def test_a_fault_of_ours_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError(f"{HOSTILE} with a secret")
    except ValueError as fault:
        complain("a fault of its own", ["logging=json"], fault, starred)
        complain("a fault of its own", [], fault, starred)
    first, *human = capsys.readouterr().err.split("\n")
    (line,) = objects(first)
    assert (line["level"], line["message"]) == ("error", "a fault of its own")
    assert "ValueError" in line["traceback"]
    assert "secret" not in first + "".join(human)
    assert human[0] == "appliance: a fault of its own"
    assert all(told.startswith("  | ") for told in human[1:] if told)


@pytest.mark.parametrize(("form", "drawn"), [("json", False), ("human", True)])
def test_no_bar_is_drawn_between_lines_of_json(
    form: str, drawn: bool, style: Callable[[str], None]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    style(form)
    terminal = Terminal()

    async def shown() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await progress.show(Lifecycle(), terminal)

    asyncio.run(shown())
    assert bool(terminal.getvalue()) == drawn
