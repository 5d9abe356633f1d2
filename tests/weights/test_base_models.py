"""A checkpoint that names other models for its parts is put together with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig
from transformers import WhisperForConditionalGeneration as Whisper

from appliance.config.errors import WeightsError
from appliance.weights import source as weights
from bench.reference import engine_options
from engine.memory.plan import plan
from engine.models.loader import load_model
from tests.checkpoints import write_ultravox
from tests.weights.test_weights import configured, resolve

PROCESSOR = "preprocessor_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All weights in one file."""
    return write_ultravox(tmp_path_factory.mktemp("whole") / "ultravox")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> Path:
    """The same as three checkpoints, `text` and `audio` as transformers saves them."""
    config = json.loads((whole / "config.json").read_text())
    weights = load_file(whole / "model.safetensors")
    text = LlamaForCausalLM(LlamaConfig(**config["text_config"]))
    text.load_state_dict(under("language_model.", weights))
    text.save_pretrained(tmp_path / "text")
    small = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
    audio = Whisper(WhisperConfig(**config["audio_config"] | small))
    audio.model.encoder.load_state_dict(under("audio_tower.", weights))
    audio.save_pretrained(tmp_path / "audio")
    own = tmp_path / "own"
    own.mkdir()
    for file in whole.glob("*.json"):
        (own / file.name).write_text(file.read_text())
    (own / PROCESSOR).rename(tmp_path / "audio" / PROCESSOR)
    keep(own, "multi_modal_projector.", weights)
    name(own, text_model_id=str(tmp_path / "text"), audio_model_id=str(tmp_path / "audio"))
    return tmp_path


def under(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def keep(folder: Path, prefixes: str | tuple[str, ...], weights: dict[str, torch.Tensor]) -> None:
    kept = {name: tensor for name, tensor in weights.items() if name.startswith(prefixes)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def name(folder: Path, **ids: str | None) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, part in (("text_model_id", "text_config"), ("audio_model_id", "audio_config")):
        config[key] = ids.get(key)
        if ids.get(key):
            del config[part]
    (folder / "config.json").write_text(json.dumps(config))


def resolved(parts: Path) -> Path:
    return resolve(configured(parts / "cache", str(parts / "own")))


def tensors(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    return load_model(str(folder), "float32", "cpu", ("audio",)).model.state_dict()


def test_a_checkpoint_that_names_nothing_stays_where_it_is(whole: Path, tmp_path: Path) -> None:
    assert resolve(configured(tmp_path, str(whole))) == whole


def test_three_checkpoints_are_loaded_as_the_one_that_they_make(whole: Path, parts: Path) -> None:
    put = resolved(parts)
    ours, expected = tensors(put), tensors(whole)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert (put / PROCESSOR).read_text() == (whole / PROCESSOR).read_text()


def test_the_plan_counts_what_is_used_of_all_three(whole: Path, parts: Path) -> None:
    planned = [
        plan(engine_options(folder, modalities=("audio",)), 1 << 33)
        for folder in (resolved(parts), whole)
    ]
    assert planned[0] == replace(planned[1], options=planned[0].options)  # paths apart
    assert planned[0].encoder_bytes > 0


def test_what_the_checkpoint_has_itself_is_not_looked_for(whole: Path, parts: Path) -> None:
    """As version 0.5 is published: a trained tower of its own, and the name of a text model."""
    own, text = parts / "own", str(parts / "text")
    for file in whole.glob("*.json"):
        (own / file.name).write_text(file.read_text())
    keep(own, ("multi_modal_projector.", "audio_tower."), load_file(whole / "model.safetensors"))
    name(own, text_model_id=text)
    ours, expected = tensors(resolved(parts)), tensors(whole)
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_a_changed_tower_is_taken_from_the_checkpoint(whole: Path, parts: Path) -> None:
    changed = load_file(whole / "model.safetensors")
    changed["audio_tower.conv1.weight"] += 1
    keep(parts / "own", ("multi_modal_projector.", "audio_tower."), changed)
    ours = tensors(resolved(parts))
    assert torch.equal(ours["audio_tower.conv1.weight"], changed["audio_tower.conv1.weight"])


def test_it_is_put_together_once_and_anew_when_something_changed(parts: Path) -> None:
    first = resolved(parts)
    assert resolved(parts) == first
    config = parts / "own" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"projector_act": "gelu"}))
    second = resolved(parts)
    assert second != first
    assert json.loads((second / "config.json").read_text())["projector_act"] == "gelu"


def test_a_model_beside_the_checkpoint_may_be_named_as_the_hub_names_it(parts: Path) -> None:
    (parts / "own" / "meta-llama").mkdir()
    (parts / "text").rename(parts / "own" / "meta-llama" / "Llama-tiny")
    config = json.loads((parts / "own" / "config.json").read_text())
    config["text_model_id"] = "meta-llama/Llama-tiny"
    (parts / "own" / "config.json").write_text(json.dumps(config))
    assert (resolved(parts) / "model.safetensors.index.json").is_file()


def test_a_hub_id_is_fetched_by_the_same_code(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_hub(name: str, revision: str | None, cache: Path, *_: object) -> Path:
        asked.append((name, revision))
        return parts / "text"

    monkeypatch.setattr(weights, "from_hub", from_hub)
    name(parts / "own", audio_model_id=None)
    config = json.loads((parts / "own" / "config.json").read_text())
    config |= {"text_model_id": "meta-llama/Llama-tiny", "audio_model_id": str(parts / "audio")}
    (parts / "own" / "config.json").write_text(json.dumps(config))
    assert (resolved(parts) / "model.safetensors.index.json").is_file()
    assert asked == [("meta-llama/Llama-tiny", None)]


def test_a_hub_that_refuses_is_told_with_who_asked_for_it(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_hub(name: str, revision: str | None, cache: Path, *_: object) -> Path:
        raise WeightsError(f"'{name}' is gated: accept its licence and log in to the hub")

    monkeypatch.setattr(weights, "from_hub", from_hub)
    config = json.loads((parts / "own" / "config.json").read_text())
    config["text_model_id"] = "meta-llama/Llama-tiny"
    (parts / "own" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"as its text_model_id: .* is gated"):
        resolved(parts)


@pytest.mark.parametrize("wrong", ["/nowhere/at/all", "pypi://text==1.0/text.gguf", "text", "../x"])
def test_other_names_are_refused(wrong: str, parts: Path) -> None:
    config = json.loads((parts / "own" / "config.json").read_text())
    config["text_model_id"] = wrong
    (parts / "own" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=f"names {wrong} as its text_model_id"):
        resolved(parts)


def test_adapters_and_halves_are_refused(whole: Path, parts: Path) -> None:
    own = parts / "own"
    weights = load_file(whole / "model.safetensors")
    lora = {"language_model.base_model.model.q_proj.lora_A.weight": torch.zeros(2, 2)}
    keep(own, ("multi_modal_projector.", "language_model.base"), weights | lora)
    with pytest.raises(WeightsError, match="adapters"):
        resolved(parts)
    keep(own, ("multi_modal_projector.", "language_model.model.layers.0"), weights)
    with pytest.raises(WeightsError, match="all of them or none"):
        resolved(parts)


def test_weights_that_are_missing_are_told(parts: Path) -> None:
    (parts / "audio" / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no safetensors"):
        resolved(parts)
