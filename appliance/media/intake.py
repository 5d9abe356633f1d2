"""The media of a conversation, all items at once: read, decoded, preprocessed, named by content."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from PIL import Image

from appliance.errors import bad_request, media_not_allowed
from appliance.media.data_url import read_data_url
from appliance.media.image import ImagePolicy, load_image
from engine.models.family import Family
from engine.models.pixels import processor_options


@dataclass(slots=True, frozen=True)
class LoadedItem:
    """One media item ready for the engine; `param` is the JSON path it came from."""

    modality: str
    digest: bytes
    tokens: int
    tensors: dict[str, torch.Tensor]
    param: str


@dataclass(slots=True, frozen=True)
class Source:
    """Where a message says that an image is."""

    url: str
    param: str


async def gather(
    messages: Sequence[Mapping[str, Any]], policy: ImagePolicy, family: Family, pool: Executor
) -> list[LoadedItem]:
    """Every image of the messages, in order. Raises ApplianceError for the first at fault.

    Limits and addresses of all items are checked before any is read.
    """
    sources = _sources(messages)
    if len(sources) > policy.limit:
        raise bad_request(
            f"At most {policy.limit} images may be in one request; {len(sources)} were given "
            "(modality: image).",
            sources[policy.limit].param,
            "too_many_items",
        )
    for source in sources:
        _check_address(source)
    loop = asyncio.get_running_loop()
    work = [loop.run_in_executor(pool, _load, source, policy, family) for source in sources]
    results = await asyncio.gather(*work, return_exceptions=True)
    items: list[LoadedItem] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        items.append(result)
    return items


def _sources(messages: Sequence[Mapping[str, Any]]) -> list[Source]:
    found: list[Source] = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str) or content is None:
            continue
        for place, part in enumerate(content):
            if part["type"] == "image_url":
                param = f"messages[{index}].content[{place}].image_url.url"
                found.append(Source(part["image_url"]["url"], param))
    return found


def _check_address(source: Source) -> None:
    if source.url[:5].lower() != "data:":
        raise media_not_allowed(
            "Images are taken from data: URLs only; nothing is fetched from elsewhere.",
            source.param,
        )


def _load(source: Source, policy: ImagePolicy, family: Family) -> LoadedItem:
    data = read_data_url(source.url, kind="image", max_bytes=policy.max_bytes, param=source.param)
    image = load_image(data, policy, source.param)
    try:
        tokens = family.image_tokens(*image.size)
    except ValueError:
        raise bad_request(
            f"The model cannot take an image of {image.width} x {image.height} pixels.",
            source.param,
            "image_size_unsupported",
        ) from None
    return LoadedItem(
        modality="image",
        digest=image_digest(image, family),
        tokens=tokens,
        tensors=family.preprocess_image(image),
        param=source.param,
    )


def image_digest(image: Image.Image, family: Family) -> bytes:
    """BLAKE2b-256 of an RGB picture, its size, and how the family processes it."""
    digest = blake2b(digest_size=32)
    options = json.dumps(processor_options(family.folder), sort_keys=True)
    digest.update(f"{type(family).__name__}\0{options}\0{image.width}x{image.height}\0".encode())
    digest.update(image.tobytes())
    return digest.digest()
