"""What ends an answer, from every file that says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from bench.reference import Recorder, engine_options, greedy
from engine.core import Engine
from engine.models.end_tokens import end_tokens
from engine.request import Request, SamplingOptions

Folder = Callable[[str], Path]


@pytest.mark.parametrize("family", ["qwen2", "qwen2_vl", "llava", "gemma3"])
def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizers_own(
    checkpoint: Folder, family: str
) -> None:
    folder = checkpoint(family)
    theirs = AutoTokenizer.from_pretrained(folder)
    declared = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    listed = {declared} if isinstance(declared, int) else set(declared)
    assert end_tokens(folder) == listed | {theirs.eos_token_id}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, set()),
        ({"config.json": {"eos_token_id": 7}}, {7}),
        ({"config.json": {"text_config": {"eos_token_id": [7, 8]}}}, {7, 8}),
        ({"config.json": {"eos_token_id": None, "text_config": {"eos_token_id": 7}}}, {7}),
        (
            {
                "generation_config.json": {"eos_token_id": [1, 2]},
                "config.json": {"eos_token_id": 7},
            },
            {1, 2},
        ),
        (
            {
                "config.json": {"eos_token_id": 7},
                "tokenizer_config.json": {
                    "eos_token": "<end>",
                    "added_tokens_decoder": {"9": {"content": "<end>"}},
                },
            },
            {7, 9},
        ),
        (
            {
                "special_tokens_map.json": {"eos_token": {"content": "</s>"}},
                "tokenizer.json": {"added_tokens": [{"content": "</s>", "id": 2}]},
            },
            {2},
        ),
        (
            {
                "tokenizer_config.json": {"eos_token": "</s>"},
                "tokenizer.json": {"model": {"vocab": {"a": 0, "</s>": 5}}},
            },
            {5},
        ),
        ({"tokenizer_config.json": {"eos_token": "</s>"}, "tokenizer.json": {}}, set()),
    ],
)
def test_each_file_counts_in_its_turn(
    tmp_path: Path, files: dict[str, Any], expected: set[int]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert end_tokens(tmp_path) == expected


def test_an_end_that_the_model_has_no_logit_for_is_left_out(
    checkpoint: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("llama"), folder)
    settings = {"eos_token": "<far>", "added_tokens_decoder": {"99999": {"content": "<far>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert 99999 in end_tokens(folder)
    recorder = Recorder(Engine(engine_options(folder)))
    options = SamplingOptions(4, temperature=0.0, min_tokens=4)  # forbids every end meanwhile
    recorder.run(Request("r", [5, 6, 7], options))
    assert len(recorder.tokens["r", 0]) == 4


def test_an_answer_ends_at_the_tokenizers_own_token(checkpoint: Folder, tmp_path: Path) -> None:
    """Where generation_config.json names another one, as some checkpoints do."""
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("llama"), folder)
    recorder = Recorder(Engine(engine_options(folder)))
    recorder.run(Request("free", [5, 6, 7], greedy(8)))
    third = recorder.tokens["free", 0][2]
    settings = {"eos_token": "<mine>", "added_tokens_decoder": {str(third): {"content": "<mine>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 99}))
    other = Recorder(Engine(engine_options(folder)))
    other.run(Request("r", [5, 6, 7], SamplingOptions(8, temperature=0.0)))
    first = recorder.tokens["free", 0].index(third)
    assert other.tokens["r", 0] == recorder.tokens["free", 0][: first + 1]
