"""What an operator can correct is one line and exit code 2, before the server listens."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance import preflight
from appliance.addresses import CannotListen, bind, check_socket_path, unbound
from appliance.config.errors import ConfigurationError
from appliance.recipe import compose_recipe
from tests.conftest import Launch

MISTAKES = [
    (
        "model.max_len=1000000",
        r"^model\.max_len=1000000 is more than .* 2048 .* model\.max_len=2048",
    ),
    ("engine.kv_cache_gb=1000", r"KV cache 1000\.00 GiB .* lower engine\.kv_cache_gb"),
    ("engine.kv_cache_gb=0.001", r"raise engine\.kv_cache_gb or lower model\.max_len"),
    ("engine=cuda", r"^engine=cuda: .*engine=cpu runs without a card"),
    ("engine.kv_dtype=fp8", r"engine\.kv_dtype=fp8 needs engine=cuda"),
    ("engine.native=neon", r"engine\.native=neon: this processor has .*, or set it to torch"),
    ("model.quantization=fp8", r"model\.quantization=fp8 needs engine=cuda"),
    ("model.quantization=int4 engine.native=torch", r"int4 is by our kernels.*engine\.native=auto"),
    (
        "model.quantization=int8 engine.fuse=false",
        r"int8 is of fused layers: set engine\.fuse=true",
    ),
    ("model.quantization=int8 parallelism.tensor=2", r"whole layers: set parallelism\.tensor=1"),
    ("engine.graphs=true", r"engine\.graphs=true needs engine=cuda"),
    ("parallelism.tensor=3", r"parallelism\.tensor=3 does not divide"),
    ("media.audio.limit=1", r"takes no audio: set media\.audio\.limit=0"),
    ("media.local_path=/not/there", r"media\.local_path: no folder '/not/there'"),
    ("media.ca_file=/not/there", r"media\.ca_file: no certificates"),
    ("server.uds=/not/there/x.sock", r"server\.uds=/not/there/x\.sock: no folder '/not/there'"),
    ("server.uds=FILE", r"is there already and no socket"),
    ("server.uds=EMPTY", r"is there already and no socket"),
    ("server.uds=/tmp/" + "x" * 120, r"longer than 107 bytes"),
    ("model.path=/not/there", r"no such folder or file"),
    ("model.path=FILE", r"is a file but not a GGUF file"),
    ("model.path=EMPTY", r"neither config\.json with safetensors nor a GGUF file"),
    ("model.revision=main", r"model\.revision is for a hub id"),
    ("model.path=pypi://nothing", r"pypi://"),
]


@pytest.fixture
def places(tmp_path: Path) -> Callable[[str], str]:
    """Fills in the names of a file and an empty folder."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()

    def fill(text: str) -> str:
        return text.replace("FILE", f"{tmp_path}/file").replace("EMPTY", f"{tmp_path}/empty")

    return fill


@pytest.mark.parametrize(("told", "expected"), MISTAKES, ids=[told[:40] for told, _ in MISTAKES])
def test_a_mistake_is_known_before_anything_is_read(
    places: Callable[[str], str], told: str, expected: str
) -> None:
    config = compose_recipe(["recipe=demo", *places(told).split()]).config
    with pytest.raises(ConfigurationError, match=expected) as fault:
        preflight.check(config)
    assert "\n" not in str(fault.value)


def test_what_is_right_passes(tmp_path: Path) -> None:
    for told in (
        "model.max_len=2048",
        f"server.uds={tmp_path}/x.sock",
        f"cache.folder={tmp_path}/c",
    ):
        preflight.check(compose_recipe(["recipe=demo", told]).config)
    preflight.check(compose_recipe(["recipe=qwen2_vl", f"cache.folder={tmp_path}/c"]).config)
    assert (tmp_path / "c").is_dir()


@pytest.mark.parametrize("recipe", ["smollm2", "qwen2_vl"])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("a file", "cannot be written"),
        ("below a file", "cannot be written"),
        ("full", r"the disk of '.*' is full"),
        ("another's", r"belongs to user \d+, this is 1234567"),
        ("read-only", r"cannot be written \(read-only\)"),
    ],
)
def test_a_cache_that_cannot_take_weights_is_told_unless_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, how: str, expected: str
) -> None:
    folder = tmp_path / "cache"
    match how:
        case "a file":
            folder.write_text("x")
        case "below a file":
            folder.write_text("x")
            folder /= "more"
        case "full":
            usage = SimpleNamespace(free=0)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        case _:
            monkeypatch.setattr(os, "access", lambda *_: False)
    if how == "another's":
        monkeypatch.setattr(os, "getuid", lambda: 1234567)
    told = [f"recipe={recipe}", f"cache.folder={folder}"]
    with pytest.raises(ConfigurationError, match=f"{expected}.*cache.folder"):
        preflight.check(compose_recipe(told).config)
    preflight.check(compose_recipe(["recipe=demo", f"cache.folder={folder}"]).config)
    monkeypatch.setattr(preflight, "kept", lambda *_: True)
    preflight.check(compose_recipe(told).config)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    """A Unix socket that somebody serves."""
    path = tmp_path / "live.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield path


def test_a_socket_is_taken_only_from_nobody(listening: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotListen, match="in use by another server"):
        check_socket_path(str(listening))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/left.sock")
    check_socket_path(f"{tmp_path}/left.sock")  # of a server that was killed


def test_a_taken_port_and_a_strange_address_say_what_to_set() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"port {port} of 127\.0\.0\.1 is in use: set serv"):
            bind("127.0.0.1", port)
    for host in ("no.such.host.invalid", "999.1.1.1", "192.0.2.1", "a..b", "x" * 300):
        with pytest.raises(CannotListen, match=r"^server\.host=.* is not an address"):
            bind(host, 0)
    assert "set server.port=8000" in unbound("127.0.0.1", 80, 13)


@pytest.mark.parametrize("form", ["human", "json"])
def test_a_start_that_cannot_be_is_one_line(launch: Launch, form: str) -> None:
    ran = launch("recipe=demo", f"logging={form}", "media.local_path=/not/there")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    told = json.loads(ran.stderr)["message"] if form == "json" else ran.stderr
    assert "media.local_path: no folder '/not/there'" in told


@pytest.mark.parametrize("form", ["human", "json"])
def test_a_port_in_use_is_one_line(launch: Launch, form: str) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        ran = launch("recipe=demo", f"logging={form}", f"server.port={port}")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert f"port {port} of 127.0.0.1 is in use: set server.port=" in ran.stderr


def test_where_nothing_temporary_can_be_written_the_cache_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setenv("TMPDIR", "/read-only")
    preflight.check(compose_recipe(["recipe=demo", f"cache.folder={tmp_path / 'cache'}"]).config)
    assert os.environ["TMPDIR"] == str(tmp_path / "cache" / "tmp")
    (tmp_path / "file").write_text("")
    config = compose_recipe(["recipe=demo", f"cache.folder={tmp_path / 'file' / 'cache'}"]).config
    with pytest.raises(ConfigurationError, match=r"no folder for temporary files: .* TMPDIR"):
        preflight.check(config)


def test_the_temporary_folder_of_the_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    preflight.check(compose_recipe(["recipe=demo"]).config)
    assert "TMPDIR" not in os.environ


def test_sound_without_what_makes_spectrograms_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = compose_recipe(["recipe=ultravox"]).config
    preflight.check_sound(sound.media)
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs librosa.*pip install librosa.*limit=0"):
        preflight.check_sound(sound.media)
    preflight.check_sound(compose_recipe(["recipe=demo"]).config.media)
