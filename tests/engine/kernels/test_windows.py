"""Windows as transformers' configurations have them, read without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from engine.models.loader import attention_shape
from engine.models.registry import family_for
from engine.models.windows import layer_windows
from tests.checkpoints import ENCODERS, WRITERS

SIZES = {"hidden_size": 64, "num_hidden_layers": 7, "num_attention_heads": 4, "vocab_size": 99}
KINDS = ["sliding_attention", "full_attention"]


def written(folder: Path, architecture: str, model_type: str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"architectures": [architecture], "model_type": model_type, **SIZES, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def theirs(folder: Path) -> tuple[int | None, ...]:
    config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    windows = attention_shape(config).windows
    return windows if any(window is not None for window in windows) else ()


def ours(folder: Path) -> tuple[int | None, ...]:
    return layer_windows(family_for(folder).text_config())


@pytest.mark.parametrize(
    ("architecture", "model_type", "changes", "some"),
    [
        ("LlamaForCausalLM", "llama", {}, False),
        ("LlamaForCausalLM", "llama", {"sliding_window": 8}, False),
        ("Qwen2ForCausalLM", "qwen2", {}, False),
        ("Qwen2ForCausalLM", "qwen2", {"use_sliding_window": True}, False),
        ("Qwen2ForCausalLM", "qwen2", {"use_sliding_window": True, "max_window_layers": 3}, True),
        ("Qwen2ForCausalLM", "qwen2", {"sliding_window": 9, "max_window_layers": 0}, False),
        ("Qwen3ForCausalLM", "qwen3", {"use_sliding_window": True, "num_hidden_layers": 30}, True),
        ("Qwen3ForCausalLM", "qwen3", {"layer_types": [KINDS[0], *KINDS * 3]}, False),
        ("Gemma3ForCausalLM", "gemma3_text", {}, True),
        ("Gemma3ForCausalLM", "gemma3_text", {"sliding_window": 512}, True),
        ("Gemma3ForCausalLM", "gemma3_text", {"sliding_window_pattern": 2}, True),
        ("Gemma3ForCausalLM", "gemma3_text", {"layer_types": [KINDS[1]] * 7}, False),
        ("Gemma3ForCausalLM", "gemma3_text", {"layer_types": [KINDS[0]] * 7}, True),
    ],
)
def test_windows_are_those_of_transformers(
    tmp_path: Path, architecture: str, model_type: str, changes: dict[str, Any], some: bool
) -> None:
    folder = written(tmp_path, architecture, model_type, **changes)
    assert ours(folder) == theirs(folder)
    assert any(window is not None for window in ours(folder)) == some


@pytest.mark.parametrize("family", sorted(WRITERS.keys() - ENCODERS))
def test_so_they_are_for_every_family(tmp_path: Path, family: str) -> None:
    folder = WRITERS[family](tmp_path / family)
    text = family_for(folder).text_config()
    model = family_for(folder).model_class().config_class.from_pretrained(folder)
    windows = attention_shape(model.get_text_config()).windows
    assert layer_windows(text) == (windows if any(windows) else ())
