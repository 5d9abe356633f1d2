from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from appliance.errors import ApplianceError
from appliance.media.fetch import Fetcher
from appliance.media.image import ImagePolicy
from appliance.media.intake import LoadedItem, gather, image_digest
from appliance.media.policy import MediaPolicy
from appliance.media.reader import MediaReader
from engine.models.llava import Llava
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_llava, write_qwen2_vl
from tests.media.test_image import encoded, see_through
from tests.models.pictures import picture

POLICY = ImagePolicy(limit=3)


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


def part(data: bytes | str) -> dict[str, Any]:
    if isinstance(data, bytes):
        data = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": data}}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def load(messages: list[Any], family: Any, pool: Executor) -> list[LoadedItem]:
    reader = MediaReader({"image": MediaPolicy()}, Fetcher())
    return asyncio.run(gather(messages, POLICY, family, reader, pool))


def refusal(content: list[Any], family: Any, pool: Executor) -> ApplianceError:
    with pytest.raises(ApplianceError) as refused:
        load([{"role": "user", "content": content}], family, pool)
    return refused.value


def test_items_come_in_the_order_sent(family: Qwen2VL, pool: Executor) -> None:
    pictures = [picture(300, 200), picture(56, 56), picture(90, 400)]
    data = [encoded(image) for image in pictures]
    messages = [
        {"role": "system", "content": "See."},
        {"role": "user", "content": [text("a"), part(data[0]), text("b"), part(data[1])]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [part(data[2]), text("c")]},
    ]
    items = load(messages, family, pool)
    assert [item.param for item in items] == [
        "messages[1].content[1].image_url.url",
        "messages[1].content[3].image_url.url",
        "messages[3].content[0].image_url.url",
    ]
    for item, image in zip(items, pictures, strict=True):
        assert item.modality == "image"
        assert item.tokens == family.image_tokens(*image.size)
        expected = family.preprocess_image(image)
        assert all(torch.equal(item.tensors[name], expected[name]) for name in expected)


def test_too_many_images_are_refused_before_any_is_read(family: Qwen2VL, pool: Executor) -> None:
    content = [text("a"), *[part("data:broken")] * 4]
    error = refusal(content, family, pool)
    assert (error.status, error.code) == (400, "too_many_items")
    assert error.param == "messages[0].content[4].image_url.url"
    for fact in ("3", "4", "image"):
        assert fact in error.message


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/cat.png",
        "http://127.0.0.1/cat.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "",
        " data:image/png;base64,AAAA",
        "blob:x",
    ],
)
def test_nothing_remote_is_fetched(url: str, family: Qwen2VL, pool: Executor) -> None:
    error = refusal([part("data:broken"), part(url)], family, pool)
    assert (error.status, error.code) == (400, "media_not_allowed")
    assert error.param == "messages[0].content[1].image_url.url"
    assert not url or url not in error.message


def test_the_first_item_at_fault_is_named(family: Qwen2VL, pool: Executor) -> None:
    good = part(encoded(picture(60, 60)))
    error = refusal([good, part(b"no image"), part("data:broken")], family, pool)
    assert (error.status, error.param) == (422, "messages[0].content[1].image_url.url")


def test_a_strip_that_the_model_cannot_take_is_refused(family: Qwen2VL, pool: Executor) -> None:
    error = refusal([part(encoded(Image.new("RGB", (10000, 1))))], family, pool)
    assert (error.status, error.code) == (400, "image_size_unsupported")
    assert "10000 x 1" in error.message


def test_equal_pictures_share_a_digest_and_others_do_not(
    family: Qwen2VL, pool: Executor, tmp_path: Path
) -> None:
    flat = Image.new("RGB", (64, 64), "red")
    turned = Image.new("RGB", (32, 128), "red")  # the same bytes in another shape
    darker = flat.copy()
    darker.putpixel((5, 5), (254, 0, 0))
    same = encoded(flat, "BMP"), encoded(flat.quantize(), "PNG"), encoded(flat, "TIFF")
    content = [part(data) for data in same]
    digests = {item.digest for item in load([{"content": content}], family, pool)}
    assert len(digests) == 1
    assert all(len(digest) == 32 for digest in digests)
    transparent = flat.convert("RGBA")
    transparent.putalpha(128)
    others = [part(encoded(image)) for image in (turned, darker, transparent)]
    digests |= {item.digest for item in load([{"content": others}], family, pool)}
    digests.add(image_digest(flat, Llava(write_llava(tmp_path / "llava"))))
    preprocessor = family.folder / "preprocessor_config.json"
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((family.folder / name).read_text())
    changed = preprocessor.read_text().replace('"max_pixels": 50176', '"max_pixels": 25088')
    (tmp_path / "preprocessor_config.json").write_text(changed)
    digests.add(image_digest(flat, Qwen2VL(tmp_path)))
    assert len(digests) == 6


def test_transparency_reaches_the_tensors(family: Qwen2VL, pool: Executor) -> None:
    image = see_through((56, 56))
    [item] = load([{"content": [part(encoded(image))]}], family, pool)
    composited = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    expected = family.preprocess_image(composited.convert("RGB"))["pixel_values"]
    assert torch.equal(item.tensors["pixel_values"], expected)
    ignored = family.preprocess_image(image.convert("RGB"))["pixel_values"]
    assert not torch.equal(item.tensors["pixel_values"], ignored)
