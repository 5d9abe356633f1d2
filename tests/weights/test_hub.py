"""What is fetched of the model hub: every byte told, nothing twice, and for a plan no weights."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.config.compose import compose
from appliance.config.errors import WeightsError
from appliance.planning import plan_recipe
from appliance.weights import hub as hub_module
from appliance.weights.source import kept, outlined, resolve
from tests.checkpoints import WRITERS
from tests.weights.hub import COMMIT, Hub, hub_of

BIG = 3_000_000  # bytes of weights that nobody asked for


def written(folder: Path, family: str = "llama") -> Path:
    """A tiny checkpoint whose weights are larger than what a plan may fetch."""
    WRITERS[family](folder)
    if family == "llama":
        file = folder / "model.safetensors"
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        end = max(one["data_offsets"][1] for name, one in header.items() if name != "__metadata__")
        header["unused"] = {"dtype": "U8", "shape": [BIG], "data_offsets": [end, end + BIG]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        data = content[8 + length :] + bytes(BIG)
        file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "below").mkdir()
    (folder / "below" / "model.safetensors").write_bytes(b"x" * BIG)
    return folder


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a tiny model, and nothing in anybody's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "others"))
    with hub_of(written(tmp_path / "model")) as hub:
        point(monkeypatch, hub.url)
        yield hub


def point(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)


def config_of(tmp_path: Path, path: str = "owner/name"):
    told = [f"model.path={path}", f"cache.folder={tmp_path / 'cache'}", "engine.kv_cache_gb=0.01"]
    return compose(told).config


def test_bytes_are_told_as_they_come(there: Hub, tmp_path: Path) -> None:
    told: list[tuple[str, float, str]] = []
    config = config_of(tmp_path)

    def note(phase: str, fraction: float, detail: str = "") -> None:
        told.append((phase, fraction, detail))

    folder = resolve(config.model, config.cache, note)
    assert (folder / "model.safetensors").read_bytes()[-BIG:] == bytes(BIG)
    assert not (folder / "below").exists()
    assert {phase for phase, _, _ in told} == {"fetching weights"}
    fractions = [fraction for _, fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    total = sum(file.stat().st_size for file in folder.iterdir())
    assert total > BIG
    assert told[-1][2] == f"{hub_module.size(total)} of {hub_module.size(total)}"


def test_what_is_there_is_fetched_once(there: Hub, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert not kept(config.model, config.cache)
    folder = resolve(config.model, config.cache)
    first = dict(there.sent)
    assert resolve(config.model, config.cache) == folder
    assert there.sent == first
    assert kept(config.model, config.cache)
    there.shutdown()
    there.server_close()
    assert resolve(config.model, config.cache) == folder  # without the hub


def test_what_another_program_fetched_is_taken(there: Hub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    theirs = Path(snapshot_download("owner/name"))
    assert theirs.is_relative_to(tmp_path / "others")
    first = dict(there.sent)
    config = config_of(tmp_path)
    assert resolve(config.model, config.cache) == theirs
    assert there.sent == first
    assert not (tmp_path / "cache" / "hub").exists()
    there.shutdown()
    there.server_close()
    assert resolve(config.model, config.cache) == theirs


def test_what_another_program_fetched_in_part_is_not_taken(there: Hub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download("owner/name", "config.json")
    config = config_of(tmp_path)
    folder = resolve(config.model, config.cache)
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / "model.safetensors").is_file()
    shutil.rmtree(tmp_path / "cache")
    there.shutdown()
    there.server_close()
    with pytest.raises(WeightsError, match="the model hub cannot be reached"):
        resolve(config.model, config.cache)


def test_weights_that_another_program_fetched_without_all_texts_are_not_fetched_again(
    there: Hub, tmp_path: Path
) -> None:
    from huggingface_hub import snapshot_download

    theirs = Path(snapshot_download("owner/name", allow_patterns=["*.safetensors", "config.json"]))
    first = there.sent["model.safetensors"]
    config = config_of(tmp_path)
    folder = resolve(config.model, config.cache)
    assert folder.is_relative_to(tmp_path / "cache")
    assert there.sent["model.safetensors"] == first
    assert (folder / "model.safetensors").samefile(theirs / "model.safetensors")
    assert (folder / "tokenizer.json").is_file()
    plan_recipe(config, folder)
    shutil.rmtree(tmp_path / "others")  # and they are fetched when they have gone
    assert (resolve(config.model, config.cache) / "model.safetensors").is_file()
    assert there.sent["model.safetensors"] == 2 * first


def test_weights_of_another_size_are_not_taken(there: Hub, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    theirs = Path(snapshot_download("owner/name"))
    file = theirs / "model.safetensors"
    content = file.read_bytes()
    file.resolve().write_bytes(content[:-10])
    config = config_of(tmp_path)
    assert (resolve(config.model, config.cache) / file.name).read_bytes() == content


@pytest.mark.parametrize("ranges", [True, False])
def test_a_plan_fetches_no_weights_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "others"))
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(made))
    monkeypatch.setattr(hub_module, "FIRST_BYTES", 100)  # less than the header
    with hub_of(written(tmp_path / "model"), ranges) as hub:
        point(monkeypatch, hub.url)
        config = config_of(tmp_path)
        with outlined(config.model, config.cache) as folder:
            planned = plan_recipe(config, folder)
            assert (folder / "model.safetensors").stat().st_blocks * 512 < BIG
        if ranges:
            assert hub.sent["model.safetensors"] < 100_000
        assert "tokenizer.json" not in hub.sent
    local = config_of(tmp_path, str(tmp_path / "model"))
    expected = plan_recipe(local, tmp_path / "model")
    for name in ("weights_bytes", "pages", "max_len", "total_bytes", "architecture"):
        assert getattr(planned, name) == getattr(expected, name)
    assert list(made.iterdir()) == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3"])
def test_a_plan_of_every_family_needs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "others"))
    with hub_of(written(tmp_path / "model", family)) as hub:
        point(monkeypatch, hub.url)
        config = config_of(tmp_path)
        config.media.image.limit = 1
        with outlined(config.model, config.cache) as folder:
            planned = plan_recipe(config, folder)
    assert planned.total_bytes == plan_recipe(config, tmp_path / "model").total_bytes


def test_a_plan_of_what_is_fetched_asks_for_nothing_more(there: Hub, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    folder = resolve(config.model, config.cache)
    first = dict(there.sent)
    with outlined(config.model, config.cache) as found:
        assert found == folder
    assert there.sent == first


def broken_length(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def no_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2) + b"[]" + bytes(100))


def short(file: Path) -> None:
    file.write_bytes(b"abc")


@pytest.mark.parametrize("spoil", [broken_length, no_header, short])
def test_weights_that_are_none_are_one_line(
    there: Hub, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(there.folder / "model.safetensors")
    config = config_of(tmp_path)
    fault = pytest.raises(Exception, match=r"safetensors|hub cannot be reached")
    with fault as told, outlined(config.model, config.cache) as folder:
        plan_recipe(config, folder)
    assert "\n" not in str(told.value)
    assert type(told.value).__name__ in ("WeightsError", "CheckpointBroken", "ModelUnsupported")


def test_a_model_that_the_hub_does_not_have_is_one_line(there: Hub, tmp_path: Path) -> None:
    config = config_of(tmp_path, "owner/other")
    for task in (resolve, lambda *given: outlined(*given).__enter__()):
        with pytest.raises(WeightsError, match="the hub has no model 'owner/other'"):
            task(config.model, config.cache)


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = os.statvfs(tmp_path)
    assert usage.f_bavail
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    config = config_of(tmp_path)
    with pytest.raises(WeightsError, match=r"has room for .* are needed there"):
        resolve(config.model, config.cache)
    assert there.sent == {}


def test_the_commit_is_that_of_the_hub(there: Hub, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert resolve(config.model, config.cache).name == COMMIT
