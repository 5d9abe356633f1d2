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

from appliance.errors import bad_request
from appliance.media.image import ImagePolicy, load_image
from appliance.media.policy import Target
from appliance.media.reader import MediaReader
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
    messages: Sequence[Mapping[str, Any]],
    policy: ImagePolicy,
    family: Family,
    reader: MediaReader,
    pool: Executor,
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
    targets = [reader.check(source.url, "image", source.param) for source in sources]
    work = [
        asyncio.ensure_future(_item(target, source.param, policy, family, reader, pool))
        for target, source in zip(targets, sources, strict=True)
    ]
    try:
        return [await item for item in work]
    finally:
        for item in work:
            item.cancel()
        await asyncio.gather(*work, return_exceptions=True)


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


async def _item(
    target: Target,
    param: str,
    policy: ImagePolicy,
    family: Family,
    reader: MediaReader,
    pool: Executor,
) -> LoadedItem:
    data = await reader.read(target, "image", param, pool)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(pool, _load, data, param, policy, family)


def _load(data: bytes, param: str, policy: ImagePolicy, family: Family) -> LoadedItem:
    image = load_image(data, policy, param)
    try:
        tokens = family.image_tokens(*image.size)
    except ValueError:
        raise bad_request(
            f"The model cannot take an image of {image.width} x {image.height} pixels.",
            param,
            "image_size_unsupported",
        ) from None
    return LoadedItem(
        modality="image",
        digest=image_digest(image, family),
        tokens=tokens,
        tensors=family.preprocess_image(image),
        param=param,
    )


def image_digest(image: Image.Image, family: Family) -> bytes:
    """BLAKE2b-256 of an RGB picture, its size, and how the family processes it."""
    digest = blake2b(digest_size=32)
    options = json.dumps(processor_options(family.folder), sort_keys=True)
    digest.update(f"{type(family).__name__}\0{options}\0{image.width}x{image.height}\0".encode())
    digest.update(image.tobytes())
    return digest.digest()
