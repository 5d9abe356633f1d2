from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from appliance.api.chat.messages import read_messages
from appliance.media.digest import content_digest, processing_salt, tensor_digest
from engine.models.item_tensors import tensors_of
from engine.models.llava import Llava
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_llava, write_qwen2_vl
from tests.engine.models.pictures import picture
from tests.media.desk import Desk, desk, part, text
from tests.media.policies import image_policy, settings
from tests.media.test_image import encoded, see_through


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


@pytest.fixture(scope="module")
def intake(family: Qwen2VL) -> Iterator[Desk]:
    with desk(family) as made:
        yield made


def test_items_come_in_the_order_sent(intake: Desk, family: Qwen2VL) -> None:
    pictures = [picture(300, 200), picture(56, 56), picture(90, 400)]
    data = [encoded(image) for image in pictures]
    messages = [
        {"role": "system", "content": "See."},
        {"role": "user", "content": [text("a"), part(data[0]), text("b"), part(data[1])]},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [part(data[2]), text("c")]},
    ]
    items = intake.load(messages)
    assert [source.param for source in read_messages(messages, []).sources] == [
        "messages[1].content[1].image_url.url",
        "messages[1].content[3].image_url.url",
        "messages[3].content[0].image_url.url",
    ]
    for item, image in zip(items, pictures, strict=True):
        assert item.modality == "image"
        assert item.length == family.image_tokens(*image.size)
        expected = tensors_of(family.preprocess_image(image))
        assert all(torch.equal(item.tensors[name], expected[name]) for name in expected)


def test_too_many_images_are_refused_before_any_is_read(intake: Desk) -> None:
    error = intake.refusal([text("a"), *[part("data:broken")] * 4])
    assert (error.status, error.code) == (400, "too_many_items")
    assert error.param == "messages[0].content[4].image_url.url"
    for fact in ("3", "4", "image"):
        assert fact in error.message


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/cat.png",
        "http://127.0.0.1/cat.png",
        " https://example.org/cat.png",
        "\nhttp://127.0.0.1/cat.png",
        "file:///etc/passwd",
        " file:///etc/passwd",
        "/etc/passwd",
        "",
        "blob:x",
    ],
)
def test_nothing_remote_is_fetched(url: str, intake: Desk) -> None:
    error = intake.refusal([part("data:broken"), part(url)])
    assert (error.status, error.code) == (400, "media_not_allowed")
    assert error.param == "messages[0].content[1].image_url.url"
    assert not url or url not in error.message


def test_the_first_item_at_fault_is_named(intake: Desk) -> None:
    good = part(encoded(picture(60, 60)))
    error = intake.refusal([good, part(b"no image"), part("data:broken")])
    assert (error.status, error.param) == (422, "messages[0].content[1].image_url.url")


def test_a_strip_that_the_model_cannot_take_is_refused(intake: Desk) -> None:
    error = intake.refusal([part(encoded(Image.new("RGB", (10000, 1))))])
    assert (error.status, error.code) == (422, "media_undecodable")
    assert "10000 x 1" in error.message


def test_whatever_changes_the_tensors_changes_the_digest(family: Qwen2VL, tmp_path: Path) -> None:
    plain = settings(image=image_policy())
    data = encoded(Image.new("RGB", (64, 64), "red"))
    salts = [
        processing_salt(family.folder, "Qwen2VL", plain),
        processing_salt(family.folder, "Llava", plain),
        processing_salt(Llava(write_llava(tmp_path / "llava")).folder, "Qwen2VL", plain),
    ]
    black = settings(image=image_policy(rgba_background=(0, 0, 0)))
    salts.append(processing_salt(family.folder, "Qwen2VL", black))
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((family.folder / name).read_text())
    assert processing_salt(tmp_path, "Qwen2VL", plain) == salts[0]
    changed = (tmp_path / "preprocessor_config.json").read_text().replace("50176", "25088")
    (tmp_path / "preprocessor_config.json").write_text(changed)
    salts.append(processing_salt(tmp_path, "Qwen2VL", plain))
    red = content_digest("image", data)
    digests = {tensor_digest(salt, b"", red, {}) for salt in salts}
    others = [
        content_digest("image", data + b"\0"),
        content_digest("image", encoded(Image.new("RGB", (32, 128), "red"))),
        content_digest("image", encoded(Image.new("RGBA", (64, 64), "red"))),
        content_digest("video", data),
    ]
    digests |= {tensor_digest(salts[0], b"", other, {}) for other in others}
    digests |= {tensor_digest(salts[0], b"", red, {"fps": value}) for value in (1, 2)}
    assert len(digests) == len(salts) + len(others) + 2
    assert all(len(digest) == 32 for digest in digests)
    assert tensor_digest(salts[0], b"", content_digest("image", bytes(data)), {}) in digests


def test_transparency_reaches_the_tensors(intake: Desk, family: Qwen2VL) -> None:
    image = see_through((56, 56))
    item = intake.one(part(encoded(image)))
    composited = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    expected = family.preprocess_image(composited.convert("RGB"))["pixels"]
    assert np.array_equal(item.tensors["pixels"], expected)
    ignored = family.preprocess_image(image.convert("RGB"))["pixels"]
    assert not np.array_equal(item.tensors["pixels"], ignored)
