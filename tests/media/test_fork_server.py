"""What the process that media workers are forked from holds: no torch, unless it has to resize."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from appliance.media import fork_server
from appliance.media.answer import receive
from appliance.media.fork_server import ForkServer
from appliance.media.prepare import PREPARERS
from appliance.media.video import load_video
from appliance.media.worker import WorkerSettings
from engine.models.family import Family
from engine.models.registry import family_for
from tests.checkpoints import write_gemma3, write_llava, write_qwen2_vl, write_ultravox
from tests.media.clips import video
from tests.media.desk import desk
from tests.media.policies import settings, video_policy
from tests.media.test_video import part

FAMILIES = {
    "qwen2_vl": write_qwen2_vl,
    "llava": write_llava,
    "gemma3": write_gemma3,
    "ultravox": write_ultravox,
}
IMPORTED = "from appliance.media.worker import main"
WITHOUT_LIBRARY = f"""
from pathlib import Path
from engine.native.loading import library
library.__wrapped__.__defaults__ = (Path("/nowhere/libappliance.so"),)
{IMPORTED}"""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    write = FAMILIES[request.param]
    return family_for(write(tmp_path_factory.mktemp(request.param)))


def packages(process: int) -> set[str]:
    """Those whose compiled modules a process has."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    inside = [line.partition("/site-packages/")[2] for line in lines]
    return {one.split("/")[0].partition(".")[0] for one in inside if one}


@contextmanager
def held(family: Family, kinds: tuple[str, ...]) -> Iterator[set[str]]:
    """Packages of a fork server once a worker of its is ready."""
    server = ForkServer(WorkerSettings(str(family.folder), kinds, settings(), 1 << 30, 30))
    server.start()
    try:
        with server.begin(0) as channel:
            receive(channel, time.monotonic() + 60)
            assert server._process is not None
            yield packages(server._process.pid)
    finally:
        server.stop()


def test_it_holds_no_torch_whatever_it_prepares(family: Family) -> None:
    with held(family, tuple(PREPARERS)) as found:
        assert {"numpy", "av", "PIL", "safetensors"} <= found
        assert "torch" not in found


def test_without_the_library_torch_resizes_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    family = family_for(write_qwen2_vl(tmp_path))
    data = video(6, size=(130, 70))
    clip = load_video(data, video_policy(), family, "")
    expected = family.preprocess_video(clip.frames, len(clip.numbers), video_policy().options)
    launch = fork_server.LAUNCH.replace(IMPORTED, WITHOUT_LIBRARY)
    monkeypatch.setattr(fork_server, "LAUNCH", launch)
    with held(family, ("image", "audio")) as found:
        assert "torch" not in found, "no videos, no resizing"
    caplog.set_level(logging.WARNING)
    with desk(family, "media.workers=1", "media.video.limit=1") as there:
        made = there.one(part(data)).tensors
        process = there.intake._pool._fork_server._process
        assert process is not None
        assert "torch" in packages(process.pid)
        assert there.metric("media_workers_replaced_total", cause="died") == 0
    assert made.keys() == expected.keys()
    assert all(np.array_equal(made[name], expected[name]) for name in expected)
    assert "resized by torch" in caplog.text
    assert "was not built" in caplog.text
