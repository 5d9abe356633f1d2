"""Where a request's time went: in the answer if asked for, and in a header."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
from openai.types.chat import ChatCompletion

from appliance.generation.stages import STAGES, Stages
from engine.request import Output, Request
from tests.api.asgi_client import Reply
from tests.api.conftest import Kitchen
from tests.api.fake_engine import Step, speak

pytestmark = pytest.mark.anyio

Cook = Callable[..., Kitchen]
TOKENS = ["read_ms", "prompt_ms", "queue_ms", "prefill_ms", "decode_ms"]


def queued(request: Request) -> Iterator[Step]:
    """Two answers' worth of tokens; the engine says when it began."""
    yield Output(request.id, 0, [5], admitted=time.perf_counter())
    for index in range(request.n):
        for token in (6, 7):
            yield Output(request.id, index, [token], "length" if token == 7 else None)


def header(reply: Reply) -> dict[str, float]:
    given = reply.headers["server-timing"]
    found = dict(re.findall(r"([a-z]+);dur=([0-9.e-]+)(?:, |$)", given))
    assert ", ".join(f"{name};dur={ms}" for name, ms in found.items()) == given
    return {name: float(ms) for name, ms in found.items()}


async def test_an_answer_tells_its_stages_when_asked(cook: Cook) -> None:
    kitchen = cook(queued)
    plain = await kitchen.client.chat(n=2)
    assert "timings" not in plain.json
    for reply in (await kitchen.client.chat(n=2, timings=True), await kitchen.client.complete()):
        stages = header(reply)
        assert [f"{name}_ms" for name in stages] == TOKENS
        assert all(ms >= 0 for ms in stages.values())
    timings = (await kitchen.client.complete(timings=True)).json["timings"]
    *names, total = timings
    assert (names, total) == (TOKENS, "total_ms")
    assert timings.pop("total_ms") == pytest.approx(sum(timings.values()), abs=0.001)


async def test_with_its_stages_an_answer_is_still_openais(cook: Cook) -> None:
    reply = await cook().client.chat(timings=True)
    ChatCompletion.model_validate(reply.json, strict=False)
    assert "queue_ms" not in reply.json["timings"]  # an engine that did not say


@pytest.mark.parametrize("include", [True, False])
async def test_a_stream_tells_them_in_its_last_chunk(cook: Cook, include: bool) -> None:
    options = {"include_usage": True} if include else None
    reply = await cook(queued).client.chat(stream=True, timings=True, stream_options=options)
    *others, last = reply.chunks
    assert list(last["timings"]) == [*TOKENS, "total_ms"]
    assert last["choices"] == []
    assert ("usage" in last) == include
    assert not any("timings" in chunk for chunk in others)
    assert [f"{name}_ms" for name in header(reply)] == TOKENS[:4]  # known at the first byte
    plain = await cook(queued).client.chat(stream=True)
    assert plain.chunks[-1]["choices"]


async def test_usage_of_every_chunk_grows_where_it_is_asked_for(cook: Cook) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = await cook(speak(5, 6, 7)).client.chat(stream=True, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in reply.chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 3


async def test_timings_that_are_no_switch_are_refused(cook: Cook) -> None:
    for reply in (await cook().client.chat(timings=1), await cook().client.complete(timings="x")):
        assert (reply.status, reply.error["param"]) == (400, "timings")


def test_stages_add_up_to_all_of_the_time() -> None:
    now = [10.0]
    stages = Stages(10.0, lambda: now[0])
    for moment, stage in ((11.0, "read"), (13.0, "prompt"), (16.0, "media"), (17.0, "prompt")):
        now[0] = moment
        stages.end(stage)
    now[0] = 24.0
    stages.begin_answer(20.0)
    now[0] = 30.0
    stages.end("decode")
    assert stages.seconds == {
        "read": 1.0,
        "prompt": 3.0,
        "media": 3.0,
        "queue": 3.0,
        "prefill": 4.0,
        "decode": 6.0,
    }
    assert set(stages.seconds) <= set(STAGES)


@pytest.mark.parametrize(("admitted", "queue"), [(0.0, 0.0), (99.0, 2.0)])
def test_a_clock_that_is_another_makes_no_stage_negative(admitted: float, queue: float) -> None:
    stages = Stages(10.0, lambda: 12.0)
    stages.begin_answer(admitted)
    assert stages.seconds == {"queue": queue, "prefill": 2.0 - queue}
