"""Images in a conversation, up to what the engine is handed."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from appliance.api.app import create_app
from appliance.api.models import media_limits
from appliance.media.assembly import intake_for
from appliance.prompt.template import ChatTemplate
from appliance.prompt.tokenizer import Tokenizer
from appliance.service import Service
from engine.models.registry import family_for
from tests.api.asgi_client import AsgiClient
from tests.api.conftest import Kitchen, PromptSide, configuration, generation
from tests.api.fake_engine import FakeEngine, speak
from tests.checkpoints import write_qwen2_vl
from tests.media.origin import content, serving, stall

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> PromptSide:
    folder: Path = write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"))
    tokenizer, family = Tokenizer(folder), family_for(folder)
    return PromptSide(tokenizer, ChatTemplate(None, tokenizer, family), family)


Equip = Callable[..., Awaitable[Kitchen]]


@pytest.fixture
async def equipped(vision: PromptSide, pool: ThreadPoolExecutor) -> AsyncIterator[Equip]:
    """Make a kitchen that takes images, with overrides of keys."""
    async with AsyncExitStack() as stack:

        async def make(*overrides: str) -> Kitchen:
            config = configuration("media.image.limit=2", *overrides)
            service = Service(config, "tiny", "0123456789ab")
            engine = FakeEngine(speak(5, 6))
            intake = intake_for(config, vision.family, pool, service.metrics)
            await intake.start()
            stack.push_async_callback(intake.close)
            service.generation = generation(
                vision, engine, config, service.metrics, pool, intake, ("image",)
            )
            service.lifecycle.loaded = True
            app = create_app(service)
            return Kitchen(service, engine, app, AsgiClient(app))

        yield make


@pytest.fixture
async def kitchen(equipped: Equip) -> Kitchen:
    return await equipped()


def picture(width: int, height: int, colour: str = "red") -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


async def test_images_reach_the_engine_where_they_were_sent(
    kitchen: Kitchen, vision: PromptSide
) -> None:
    content = ["Left", picture(56, 84), "right", picture(84, 56, "blue"), "Compare."]
    reply = await kitchen.client.chat(messages=[{"role": "user", "content": content}])
    assert reply.status == 200, reply.body
    request = kitchen.engine.requests[0]
    pad = vision.tokenizer.id_of("<|image_pad|>")
    assert [item.modality for item in request.media] == ["image", "image"]
    for item in request.media:
        assert set(request.prompt_ids[item.start : item.end]) == {pad}
    assert request.prompt_ids.count(pad) == sum(item.length for item in request.media)
    assert request.media[0].digest != request.media[1].digest
    between = request.prompt_ids[request.media[0].end : request.media[1].start]
    assert "right" in vision.tokenizer.decode(between)
    details = reply.json["usage"]["prompt_tokens_details"]
    assert details["image_tokens"] == sum(item.length for item in request.media)
    assert details["text_tokens"] + details["image_tokens"] == len(request.prompt_ids)


async def test_a_placeholder_typed_as_text_is_no_image(
    kitchen: Kitchen, vision: PromptSide
) -> None:
    content = ["<|vision_start|><|image_pad|><|vision_end|>", picture(56, 56)]
    reply = await kitchen.client.chat(messages=[{"role": "user", "content": content}])
    assert reply.status == 200
    request = kitchen.engine.requests[0]
    pad = vision.tokenizer.id_of("<|image_pad|>")
    assert request.prompt_ids.count(pad) == request.media[0].length


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        ("http://169.254.169.254/latest", 400, "media_not_allowed"),
        ("https://example.org/a.png", 400, "media_not_allowed"),
        ("file:///etc/passwd", 400, "media_not_allowed"),
        ("data:image/png;base64,AAAA", 422, None),
    ],
)
async def test_refused_images_are_named_by_path(
    kitchen: Kitchen, image: str, status: int, code: str | None
) -> None:
    content = ["What is this?", {"type": "image_url", "image_url": {"url": image}}]
    reply = await kitchen.client.chat(messages=[{"role": "user", "content": content}], stream=True)
    assert reply.status == status
    assert reply.error["param"] == "messages[0].content[1].image_url.url"
    assert code is None or reply.error["code"] == code
    assert image not in reply.error["message"]
    assert kitchen.engine.requests == []


async def test_one_image_too_many_is_refused(kitchen: Kitchen) -> None:
    content = [picture(28, 28)] * 3
    reply = await kitchen.client.chat(messages=[{"role": "user", "content": content}])
    assert reply.status == 400
    assert "2" in reply.error["message"]
    assert "image" in reply.error["message"]


async def test_an_image_counts_against_the_context(kitchen: Kitchen) -> None:
    fits = await kitchen.client.chat(max_tokens=200)
    content = [picture(560, 840)]
    reply = await kitchen.client.chat(
        messages=[{"role": "user", "content": content}], max_tokens=200
    )
    assert fits.status == 200
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert len(kitchen.engine.requests) == 1


async def test_models_tell_the_limits_of_images(kitchen: Kitchen) -> None:
    (card,) = (await kitchen.client.ask("GET", "/v1/models")).json["data"]
    assert card["modalities"]["input"] == ["text", "image"]
    assert card["limits"]["image"]["limit"] == 2


def test_the_card_has_the_limits_of_every_modality_and_of_embeddings() -> None:
    told = ("media.audio.limit=3", "media.audio.max_seconds=45", "media.embeddings.accept=true")
    media = configuration(*told).media
    limits = media_limits(media, ("image", "video", "audio"))
    assert limits["audio"] == {"limit": 3, "max_bytes": 25 << 20, "max_seconds": 45}
    assert limits["video"]["max_seconds"] == media.video.max_seconds
    assert limits["embeddings"] == {"max_bytes": 128 << 20}
    assert "embeddings" not in media_limits(configuration().media, ())


async def test_images_are_fetched_where_the_recipe_allows(
    equipped: Equip,
) -> None:
    kitchen = await equipped(
        "media.allowed_domains=['127.0.0.1:*']",
        "media.allow_private=true",
        "media.image.timeout=3",
    )
    inline = picture(56, 84)
    data = base64.b64decode(inline["image_url"]["url"].partition(",")[2])
    async with serving({"/a.png": content(data), "/slow": stall}) as origin:
        address = f"http://127.0.0.1:{origin.port}"

        def ask(path: str) -> list[Any]:
            part = {"type": "image_url", "image_url": {"url": address + path}}
            return [{"role": "user", "content": [inline, part]}]

        reply = await kitchen.client.chat(messages=ask("/a.png?signature=1"))
        assert reply.status == 200, reply.body
        first, second = kitchen.engine.requests[0].media
        assert first.digest == second.digest
        for path, status, code in (
            ("/none", 424, "media_fetch_failed"),
            ("/slow", 504, "media_timeout"),
        ):
            reply = await kitchen.client.chat(messages=ask(path), stream=True)
            assert (reply.status, reply.error["code"]) == (status, code)
            assert reply.error["param"] == "messages[0].content[1].image_url.url"
        reply = await kitchen.client.chat(messages=ask("/a.png"))
        assert reply.status == 200, "the next request works"
    assert len(kitchen.engine.requests) == 2


async def test_nothing_is_fetched_when_one_address_is_refused(
    equipped: Equip,
) -> None:
    kitchen = await equipped("media.allowed_domains=['127.0.0.1:*']", "media.allow_private=true")
    async with serving({"*": stall}) as origin:
        urls = (f"http://127.0.0.1:{origin.port}/a.png", "http://other.test/")
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        reply = await kitchen.client.chat(messages=[{"role": "user", "content": content}])
        assert (reply.status, reply.error["code"]) == (400, "media_not_allowed")
        assert reply.error["param"] == "messages[0].content[1].image_url.url"
        assert origin.opened == 0


async def test_a_bad_item_ends_the_others(equipped: Equip) -> None:
    kitchen = await equipped(
        "media.allowed_domains=['127.0.0.1:*']",
        "media.allow_private=true",
        "media.image.timeout=600",
    )
    async with serving({"/slow": stall}) as origin:
        urls = [f"http://127.0.0.1:{origin.port}/{path}" for path in ("none", "slow")]
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        reply = await kitchen.client.chat(messages=[{"role": "user", "content": content}])
        assert (reply.status, reply.error["code"]) == (424, "media_fetch_failed")
        assert reply.error["param"] == "messages[0].content[0].image_url.url"
        assert await origin.settled()


@pytest.mark.parametrize("path", ["/tokenize", "/v1/chat/completions/render"])
async def test_shown_prompts_have_each_item_at_its_tokens(
    kitchen: Kitchen, vision: PromptSide, path: str
) -> None:
    content = ["Left", picture(56, 84), "right", picture(84, 56, "blue"), "Compare."]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    shown = (await kitchen.client.ask("POST", path, body)).json
    assert not kitchen.engine.requests
    assert (await kitchen.client.ask("POST", "/v1/chat/completions", body)).status == 200
    [request] = kitchen.engine.requests
    assert shown.get("tokens", shown.get("token_ids")) == request.prompt_ids
    if "spans" in shown:
        spans = [(one["modality"], one["start"], one["length"]) for one in shown["spans"]]
        assert spans == [(item.modality, item.start, item.length) for item in request.media]
        assert shown["text"].count("<|image_pad|>") == 2


async def test_what_media_are_refused_is_refused_where_they_are_shown(kitchen: Kitchen) -> None:
    content = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    for path in ("/tokenize", "/v1/chat/completions/render"):
        reply = await kitchen.client.ask("POST", path, body)
        assert (reply.status, reply.error["code"]) == (400, "media_not_allowed")
        assert reply.error["param"] == "messages[0].content[0].image_url.url"


async def test_reading_and_preparing_media_are_stages_of_their_own(kitchen: Kitchen) -> None:
    content = [picture(56, 84), "What is this?"]
    messages = [{"role": "user", "content": content}]
    reply = await kitchen.client.chat(messages=messages, timings=True)
    assert {"fetch_ms", "media_ms"} < set(reply.json["timings"])
    assert "fetch;dur=" in reply.headers["server-timing"]
    plain = await kitchen.client.chat(timings=True)
    assert not {"fetch_ms", "media_ms"} & set(plain.json["timings"])
