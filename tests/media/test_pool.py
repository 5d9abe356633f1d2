"""Workers that die, hang, want too much memory or too much time, and pools that are full."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from appliance.errors import ApplianceError
from appliance.media.prepare import MediaTask
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_qwen2_vl
from tests.engine.models.pictures import picture
from tests.media.desk import Desk, desk, part
from tests.media.test_cache import open_memory
from tests.media.test_image import encoded

SMALL = encoded(picture(60, 60))


def large(colour: str = "red") -> bytes:
    """A picture that takes long enough to be interrupted."""
    return encoded(Image.new("RGB", (7000, 7000), colour))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


@pytest.fixture
def intake(family: Qwen2VL) -> Iterator[Desk]:
    with desk(family, "media.workers=1", "media.worker_seconds=3", "cache.media_gb=0") as made:
        yield made


def fork_server(intake: Desk) -> int:
    process = intake.intake._pool._fork_server._process
    assert process is not None
    return process.pid


def workers(intake: Desk) -> list[int]:
    """Processes of the workers that live."""
    parent = fork_server(intake)
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children if state(int(child)) not in "ZX"]


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupted(intake: Desk, number: int) -> ApplianceError:
    """What a request is told whose worker gets a signal while it decodes."""
    eventually(lambda: len(workers(intake)) == 1)
    (worker,) = workers(intake)

    def asked() -> float:
        return intake.metric("media_seconds_count", stage="queue", modality="image")

    async def interrupt() -> None:
        twice = asked() + 2  # for its size, and for its pixels
        work = asyncio.ensure_future(intake.loaded([{"content": [part(large())]}]))
        while asked() < twice or state(worker) != "R":
            assert not work.done()
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        os.kill(worker, number)
        await work

    with pytest.raises(ApplianceError) as refused:
        intake.runner.run(interrupt())
    eventually(lambda: state(worker) in "ZX")
    return refused.value


def test_a_worker_that_dies_costs_one_request_an_error(intake: Desk) -> None:
    (before,) = workers(intake)
    error = interrupted(intake, signal.SIGKILL)
    assert (error.status, error.code) == (422, "media_undecodable")
    assert error.param == "messages[0].content[0].image_url.url"
    assert intake.metric("media_workers_replaced_total", cause="died") == 1
    assert intake.one(part(SMALL)).length
    (after,) = workers(intake)
    assert after != before


def test_a_worker_that_hangs_costs_one_request_a_timeout(intake: Desk) -> None:
    begun = time.monotonic()
    error = interrupted(intake, signal.SIGSTOP)
    assert time.monotonic() - begun > 2
    assert (error.status, error.code) == (504, "media_timeout")
    assert error.param == "messages[0].content[0].image_url.url"
    assert intake.metric("media_workers_replaced_total", cause="timeout") == 1
    assert intake.one(part(SMALL)).length
    assert len(workers(intake)) == 1, "the one that hung is gone"


def test_a_worker_that_died_idle_costs_nobody_anything(intake: Desk) -> None:
    for _ in range(3):
        (worker,) = workers(intake)
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: state(worker) in "ZX")  # noqa: B023 - called before the next turn
        assert intake.one(part(SMALL)).length
    assert len(workers(intake)) == 1


def test_replacing_a_worker_takes_milliseconds(intake: Desk) -> None:
    def once() -> float:
        (worker,) = workers(intake)
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: state(worker) in "ZX")
        begun = time.monotonic()
        assert intake.one(part(SMALL)).length
        return time.monotonic() - begun

    # tried again, because a busy machine may leave this process without a processor
    assert any(once() < 0.5 for _ in range(8))


def test_a_fork_server_that_died_takes_its_workers_along_and_another_is_started(
    intake: Desk,
) -> None:
    before = fork_server(intake)
    (worker,) = workers(intake)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: state(worker) in "ZX")
    assert intake.one(part(SMALL)).length
    assert fork_server(intake) != before


def test_decoding_may_not_take_more_memory_than_allowed(family: Qwen2VL) -> None:
    with desk(family, "media.workers=1", "media.worker_gb=0.1", "cache.media_gb=0") as intake:
        (before,) = workers(intake)
        error = intake.refusal([part(large())])
        assert (error.status, error.code) == (422, "media_undecodable")
        assert "memory" in error.message
        assert intake.one(part(SMALL)).length
        assert workers(intake) == [before], "it survives"
    with desk(family, "media.workers=1", "media.worker_gb=0.5", "cache.media_gb=0") as intake:
        assert intake.one(part(large())).length, "the same picture, allowed more"


def test_a_full_pool_answers_429(family: Qwen2VL) -> None:
    with desk(family, "media.workers=1", "media.queue=3", "cache.media_gb=0") as intake:
        (worker,) = workers(intake)
        os.kill(worker, signal.SIGSTOP)

        async def crowd() -> ApplianceError:
            first = asyncio.ensure_future(intake.loaded([{"content": [part(SMALL)] * 2}]))
            while intake.metric("media_items_inside") < 2:
                await asyncio.sleep(0.001)
            with pytest.raises(ApplianceError) as refused:
                await intake.loaded([{"content": [part(SMALL)] * 2}])
            third = asyncio.ensure_future(intake.loaded([{"content": [part(SMALL)]}]))
            await asyncio.sleep(0.05)
            os.kill(worker, signal.SIGCONT)
            assert len(await first) == 2
            assert len(await third) == 1
            return refused.value

        error = intake.runner.run(crowd())
        assert (error.status, error.code) == (429, "queue_full")
        assert error.headers["Retry-After"]
        assert intake.metric("media_items_inside") == 0
        assert len(intake.load([{"content": [part(SMALL)] * 3}])) == 3


def test_a_request_larger_than_the_queue_waits_for_an_empty_one(family: Qwen2VL) -> None:
    with desk(family, "media.workers=2", "media.queue=1") as intake:
        data = [encoded(picture(60, 60, seed=seed)) for seed in range(3)]
        assert len(intake.load([{"content": [part(one) for one in data]}])) == 3
        assert len(workers(intake)) == 2


def test_a_header_that_lies_about_the_size_is_noticed(
    intake: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = intake.intake._pool
    truth = pool.probe

    async def lie(task: MediaTask) -> int | None:
        return (await truth(task) or 0) + 1

    monkeypatch.setattr(pool, "probe", lie)
    error = intake.refusal([part(SMALL)])
    assert (error.status, error.code) == (422, "media_undecodable")
    assert error.param == "messages[0].content[0].image_url.url"


def test_no_shared_memory_is_left_behind(intake: Desk) -> None:
    before = open_memory()
    for _ in range(3):
        intake.one(part(SMALL))
    intake.refusal([part(b"no picture")])
    interrupted(intake, signal.SIGKILL)
    interrupted(intake, signal.SIGSTOP)
    intake.one(part(SMALL))
    eventually(lambda: open_memory() == before)


def test_the_workers_end_with_the_server(family: Qwen2VL) -> None:
    code = f"""
import sys, time
from engine.models.qwen2_vl import Qwen2VL
from tests.media.desk import desk
from tests.media.test_pool import fork_server, workers
with desk(Qwen2VL({str(family.folder)!r}), "media.workers=2") as intake:
    print(fork_server(intake), *workers(intake), flush=True)
    time.sleep(60)
"""
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert server.stdout is not None
    processes = [int(word) for word in server.stdout.readline().split()]
    assert len(processes) == 3
    server.kill()
    server.wait()
    eventually(lambda: all(state(process) in "ZX" for process in processes))
