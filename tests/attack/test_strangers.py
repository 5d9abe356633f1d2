"""What one key asked, another cannot find out: neither by what is counted nor by what is kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from PIL import Image

from tests.serving.conftest import Server, metric, serving

SECRET = "The password of the vault is swordfish and nobody else may know it. " * 3


@pytest.fixture(scope="module")
def server(checkpoint: Callable[[str], Path]) -> Iterator[Server]:
    path = checkpoint("qwen2_vl")
    told = [f"model.path={path}", "recipe=qwen2_vl", "model.name=tiny", "model.max_len=1024"]
    with serving(*told, "engine.threads=1", "server.api_keys=[ann,bob]") as server:
        server.key = "ann"
        yield server


def ask(server: Server, key: str, content: object) -> int:
    """How many tokens of the prompt were in the cache."""
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0)
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content}],  # type: ignore[misc, list-item]
        max_tokens=2,
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


def count(server: Server, name: str) -> float:
    try:
        return metric(server, name)
    except StopIteration:  # nothing was counted so far
        return 0.0


def test_a_text_cannot_be_guessed_by_what_is_cached(server: Server) -> None:
    assert ask(server, "ann", SECRET) == 0
    assert ask(server, "bob", SECRET) == 0
    assert ask(server, "ann", SECRET) > 16


def picture() -> list[dict[str, object]]:
    data = io.BytesIO()
    Image.new("RGB", (90, 90), (9, 90, 200)).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}, "uuid": "mine"}]


def test_a_picture_is_prepared_and_looked_at_again_for_another(server: Server) -> None:
    prepared, encoded = "appliance_media_cache_misses_total", "appliance_encoder_cache_misses_total"
    for key, times in (("ann", 1), ("bob", 2), ("ann", 2), ("bob", 2)):
        ask(server, key, picture())
        assert (count(server, prepared), count(server, encoded)) == (times, times)


def test_a_name_means_nothing_to_another(server: Server) -> None:
    ask(server, "ann", picture())
    by_name = [{"type": "image_url", "image_url": None, "uuid": "mine"}]
    ask(server, "ann", by_name)
    elsewhere = [{**picture()[0], "uuid": "hers"}]
    ask(server, "ann", elsewhere)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, "bob", [{"type": "image_url", "image_url": None, "uuid": "hers"}])
    assert refused.value.code == "media_cache_miss"


def test_the_log_tells_keys_apart_and_none_of_them(server: Server) -> None:
    ask(server, "ann", "Hello")
    line = [line for line in server.lines if "/v1/chat/completions" in line][-1]
    assert 'tenant="key ' in line
    assert "ann" not in line
