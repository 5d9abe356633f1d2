from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from appliance.media.cache import MediaCache
from appliance.media.pool import Ready
from engine.device.shared_tensors import SharedTensors
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_qwen2_vl
from tests.engine.models.pictures import picture
from tests.media.desk import Desk, desk, part
from tests.media.origin import Call, content, serving
from tests.media.test_image import encoded


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


@pytest.fixture(scope="module")
def intake(family: Qwen2VL) -> Iterator[Desk]:
    with desk(family) as made:
        yield made


def ready(size: int) -> Ready:
    tensors = SharedTensors.store({"pixels": np.zeros(size, np.uint8)})
    return Ready("image", 1, tensors)


def open_memory() -> int:
    """Pieces of shared memory that this process holds."""
    paths = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("memfd:" in os.readlink(path) for path in paths)


def test_the_least_recently_used_goes_first() -> None:
    cache = MediaCache(100, 10)
    for name in (b"a", b"b", b"c"):
        cache.put(name, ready(30))
    assert cache.get(b"a") is not None
    cache.put(b"d", ready(40))
    assert cache.get(b"b") is None
    assert [cache.get(name) is not None for name in (b"a", b"c", b"d")] == [True, True, True]
    assert cache.bytes == 100


def test_the_cache_never_holds_more_than_its_budget() -> None:
    before = open_memory()
    cache = MediaCache(1000, 5)
    for number in range(200):
        cache.put(bytes([number]), ready(37 * number % 1200 + 1))
        assert cache.bytes <= 1000
        assert len(cache) <= 5
        assert cache.bytes == sum(item.tensors.nbytes for item in cache._items.values())
        assert open_memory() - before == len(cache), "what is evicted is freed"
    assert cache.bytes


def test_an_item_larger_than_the_budget_evicts_nothing() -> None:
    cache = MediaCache(100, 10)
    cache.put(b"a", ready(50))
    cache.put(b"large", ready(101))
    cache.put(b"a", ready(60))
    assert cache.get(b"large") is None
    assert cache.get(b"a") is not None
    assert cache.bytes == 50


def test_a_repeated_picture_is_neither_decoded_nor_preprocessed(intake: Desk) -> None:
    data = encoded(picture(120, 90))
    first = intake.one(part(data))
    decoded = intake.metric("media_seconds_count", stage="decode", modality="image")
    asked = intake.metric("media_seconds_count", stage="queue", modality="image")
    hits = intake.metric("media_cache_hits_total", modality="image")
    again = intake.one(part(data))
    assert again.tensors is first.tensors
    assert again.digest == first.digest
    assert intake.metric("media_seconds_count", stage="decode", modality="image") == decoded
    assert intake.metric("media_seconds_count", stage="queue", modality="image") == asked
    assert intake.metric("media_cache_hits_total", modality="image") == hits + 1
    assert intake.metric("media_cache_bytes") >= first.tensors.nbytes
    assert intake.one(part(encoded(picture(120, 90, seed=1)))).digest != first.digest


def test_a_picture_asked_for_at_once_is_prepared_once(intake: Desk) -> None:
    data = encoded(picture(400, 500, seed=4))
    decoded = intake.metric("media_seconds_count", stage="decode", modality="image")
    messages = [{"content": [part(data), part(data)]}]

    async def together() -> list[object]:
        return [item for many in await asyncio.gather(*work) for item in many]

    work = [intake.loaded(messages) for _ in range(4)]
    items = intake.runner.run(together())
    assert len(items) == 8
    assert intake.metric("media_seconds_count", stage="decode", modality="image") == decoded + 1


def test_one_who_leaves_does_not_end_the_work_for_others(intake: Desk) -> None:
    data = encoded(picture(1200, 1000, seed=5))
    messages = [{"content": [part(data)]}]

    async def leave() -> int:
        stays = asyncio.ensure_future(intake.loaded(messages))
        leaves = asyncio.ensure_future(intake.loaded(messages))
        while not intake.intake._preparing:
            await asyncio.sleep(0.001)
        leaves.cancel()
        return len(await stays)

    assert intake.runner.run(leave()) == 1
    assert not intake.intake._preparing


def test_without_a_budget_nothing_is_kept(family: Qwen2VL) -> None:
    with desk(family, "cache.media_gb=0") as intake:
        data = encoded(Image.new("RGB", (60, 60), "red"))
        for _ in range(2):
            intake.one(part(data))
        assert intake.metric("media_seconds_count", stage="decode", modality="image") == 2
        assert intake.metric("media_cache_items") == intake.metric("media_cache_bytes") == 0


@pytest.mark.parametrize(
    ("told", "calls"),
    [
        ({"Cache_Control": "max-age=60"}, 1),
        ({"Cache_Control": "max-age=60, private"}, 3),
        ({"Cache_Control": "max-age=60", "Age": "60"}, 3),
        ({}, 3),
    ],
)
def test_a_url_is_fetched_again_unless_its_host_says_it_need_not_be(
    told: dict[str, str], calls: int, family: Qwen2VL
) -> None:
    fetching = ("media.allowed_domains=['127.0.0.1:*']", "media.allow_private=true")
    with desk(family, *fetching) as intake:
        data = encoded(picture(90, 60, seed=8))

        async def ask() -> int:
            async with serving({"*": content(data, **told)}) as origin:
                url = f"http://127.0.0.1:{origin.port}/a?b=c"
                for _ in range(3):
                    await intake.loaded([{"content": [part(url)]}])
                before = len(origin.calls)
                await intake.loaded([{"content": [part(url + "d")]}])
                assert len(origin.calls) == before + 1, "another URL"
                return before

        assert intake.runner.run(ask()) == calls
        assert intake.metric("media_cache_hits_total", modality="image") == 3


def test_new_content_of_a_url_is_another_item(family: Qwen2VL) -> None:
    fetching = ("media.allowed_domains=['127.0.0.1:*']", "media.allow_private=true")
    with desk(family, *fetching) as intake:
        pictures = [encoded(picture(90, 60, seed=seed)) for seed in (1, 2)]

        async def answer(call: Call) -> None:
            await call.answer(pictures.pop(0), Cache_Control="no-cache")

        async def ask() -> list[bytes]:
            async with serving({"*": answer}) as origin:
                messages = [{"content": [part(f"http://127.0.0.1:{origin.port}/")]}]
                return [(await intake.loaded(messages))[0].digest for _ in range(2)]

        first, second = intake.runner.run(ask())
        assert first != second
