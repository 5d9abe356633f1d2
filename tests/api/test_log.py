"""What the log tells of a request, as `server.log_requests` says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from engine.device.log_lines import LONGEST, HumanFormatter, JsonFormatter
from tests.api.asgi_client import chat_body
from tests.api.conftest import Kitchen, PromptSide
from tests.api.fake_engine import speak

pytestmark = pytest.mark.anyio

Cook = Callable[..., Kitchen]
SECRET = "iVBORw0KGgoAAAANSUhEUg"


def fields(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    [record] = [record for record in caplog.records if record.name == "appliance.requests"]
    told: dict[str, Any] = record.__dict__["fields"]
    return told


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("stream", [False, True])
async def test_text_is_logged_where_it_is_asked_for(
    cook: Cook, prompt_side: PromptSide, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    kitchen = cook(speak(5, 6, 7), "server.log_requests=text")
    await kitchen.client.chat(n=2, stream=stream)
    told = fields(caplog)
    shown = await kitchen.client.ask("POST", "/v1/chat/completions/render", chat_body())
    assert told["prompt"] == shown.json["text"]
    text = prompt_side.tokenizer.decode([5, 6, 7])
    assert told["answer"] == f"{text}\n{text}"


async def test_ids_are_counted_and_long_texts_cut(
    cook: Cook, caplog: pytest.LogCaptureFixture
) -> None:
    kitchen = cook(speak(*[50] * 100), "server.log_requests=text")
    await kitchen.client.complete(prompt=[[5, 6], [7]], n=100)
    told = fields(caplog)
    assert told["prompt"] == "2 ids\n1 ids"
    for formatter in (HumanFormatter(), JsonFormatter()):
        assert len(formatter.value(told["answer"])) <= LONGEST + 1


async def test_what_data_urls_hold_is_never_in_a_line(
    cook: Cook, caplog: pytest.LogCaptureFixture
) -> None:
    kitchen = cook(..., "server.log_requests=text")
    typed = f"What is data:image/png;base64,{SECRET} ?"
    await kitchen.client.chat(messages=[{"role": "user", "content": typed}])
    assert SECRET in fields(caplog)["prompt"]
    [record] = [record for record in caplog.records if record.name == "appliance.requests"]
    for formatter in (HumanFormatter(), JsonFormatter()):
        line = formatter.format(record)
        assert "What is" in line
        assert SECRET not in line


async def test_usually_no_text_is_logged(cook: Cook, caplog: pytest.LogCaptureFixture) -> None:
    await cook().client.chat()
    assert not {"prompt", "answer"} & set(fields(caplog))


async def test_nothing_is_logged_but_faults(
    cook: Cook, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen = cook(..., "server.log_requests=none")
    await kitchen.client.chat()
    await kitchen.client.chat(temperature=9)
    assert not [record for record in caplog.records if record.name == "appliance.requests"]

    async def broken(*_: object, **__: object) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(kitchen.service.generation, "chat", broken)
    assert (await kitchen.client.chat()).status == 500
    assert [record.exc_info for record in caplog.records if record.name == "appliance.requests"]
