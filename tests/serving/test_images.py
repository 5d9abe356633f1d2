"""Pictures through the launched endpoint, with the official client."""

from __future__ import annotations

import base64
import io
import urllib.request
from pathlib import Path

import openai
import psutil
import pytest
from PIL import Image

from bench.reference import picture
from tests.serving.conftest import Server


def data_url(image: Image.Image) -> str:
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def ask(server: Server, *images: Image.Image, text: str = "What is this?"):  # type: ignore[no-untyped-def]
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return server.client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        temperature=0,
        max_tokens=10,
        logprobs=True,
        top_logprobs=2,
    )


def scores(answer) -> list[float]:  # type: ignore[no-untyped-def]
    return [token.logprob for token in answer.choices[0].logprobs.content]


def test_pixels_and_their_order_change_the_answer(tiny_qwen2_vl: Server) -> None:
    red, noise = Image.new("RGB", (84, 84), "red"), picture(84, 84, 1)
    one = scores(ask(tiny_qwen2_vl, red))
    assert scores(ask(tiny_qwen2_vl, red)) == pytest.approx(one, abs=1e-4)
    assert scores(ask(tiny_qwen2_vl, noise)) != pytest.approx(one, abs=1e-3)
    both = scores(ask(tiny_qwen2_vl, red, noise))
    assert scores(ask(tiny_qwen2_vl, noise, red)) != pytest.approx(both, abs=1e-3)


def test_usage_counts_the_tokens_of_pictures(tiny_qwen2_vl: Server) -> None:
    plain = ask(tiny_qwen2_vl).usage.prompt_tokens
    seen = ask(tiny_qwen2_vl, picture(84, 84, 1)).usage
    assert seen.prompt_tokens == plain + 9 + 2  # 6 by 6 patches merged 2 by 2, start and end
    assert seen.prompt_tokens_details.model_dump()["image_tokens"] == 9


def test_gemma_sees_pictures_in_their_order(tiny_gemma3: Server) -> None:
    red, noise = Image.new("RGB", (84, 84), "red"), picture(84, 84, 1)
    plain, both = ask(tiny_gemma3), ask(tiny_gemma3, red, noise)
    assert both.usage.prompt_tokens_details.model_dump()["image_tokens"] == 2 * 16
    # each between a start and an end with a double break around them, joined where they meet
    assert both.usage.prompt_tokens == plain.usage.prompt_tokens + 2 * (16 + 2) + 2
    assert scores(ask(tiny_gemma3, red, noise)) == pytest.approx(scores(both), abs=1e-4)
    assert scores(ask(tiny_gemma3, noise, red)) != pytest.approx(scores(both), abs=1e-3)


def test_a_refused_picture_names_its_part(tiny_qwen2_vl: Server) -> None:
    for url, code in (
        ("https://example.org/a.png", "media_not_allowed"),
        ("data:image/png;base64,AAAA", "media_undecodable"),
    ):
        parts = [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        with pytest.raises(openai.APIStatusError) as refused:
            tiny_qwen2_vl.client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": parts}],  # type: ignore[list-item,misc]
            )
        assert refused.value.code == code
        assert refused.value.param == "messages[0].content[1].image_url.url"
        assert ask(tiny_qwen2_vl).choices


def test_a_picture_is_timed_in_its_tower(tiny_qwen2_vl: Server) -> None:
    ask(tiny_qwen2_vl, picture(70, 98, 77))
    with urllib.request.urlopen(tiny_qwen2_vl.base_url + "/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    name = 'appliance_media_seconds_count{modality="image",stage="encode"}'
    assert any(line.startswith(name) and float(line.split()[-1]) > 0 for line in lines)


def test_the_server_itself_loads_no_torch(tiny_qwen2_vl: Server) -> None:
    """It hands tensors on without looking at them: 190 MB and a second that it does without."""
    assert "libtorch" not in Path(f"/proc/{tiny_qwen2_vl.process.pid}/maps").read_text()
    children = psutil.Process(tiny_qwen2_vl.process.pid).children(recursive=True)
    maps = [Path(f"/proc/{child.pid}/maps").read_text() for child in children]
    assert any("libtorch" in one for one in maps)  # control: the engine and the workers do
