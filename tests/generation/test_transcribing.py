"""What a model of Whisper is told, by what its checkpoint says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import ApplianceError
from appliance.generation.transcribing import Segment, Transcriber
from appliance.prompt.tokenizer import Tokenizer
from engine.models.documents import CheckpointBroken
from engine.models.languages import LANGUAGES
from engine.models.whisper import Whisper
from engine.models.whisper_tokens import whisper_tokens
from tests.checkpoints import write_whisper


def transcriber(folder: Path) -> Transcriber:
    limits = SimpleNamespace(max_len=64)
    generation: Any = SimpleNamespace(tokenizer=Tokenizer(folder), limits=limits)
    return Transcriber(generation, Whisper(folder))


@pytest.mark.parametrize("given", ["de", "DE", "German", " german "])
def test_a_language_is_known_by_code_and_name(given: str, tmp_path: Path) -> None:
    assert transcriber(write_whisper(tmp_path)).language(given) == "de"


@pytest.mark.parametrize("given", ["es", "spanish", "", "x" * 90])
def test_a_language_that_the_model_has_no_token_for_is_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(ApplianceError) as told:
        transcriber(write_whisper(tmp_path)).language(given)
    assert (told.value.status, told.value.param) == (400, "language")


def test_a_model_for_english_alone_is_told_neither_language_nor_task(tmp_path: Path) -> None:
    made = transcriber(write_whisper(tmp_path, multilingual=False))
    assert (made.tokens.languages, made.tokens.tasks) == ({}, {})
    assert made.language("English") == "en"
    with pytest.raises(ApplianceError):
        made.language("de")


def test_of_a_long_prompt_the_end_is_kept(tmp_path: Path) -> None:
    made = transcriber(write_whisper(tmp_path))
    words = " ".join(f"word{number}" for number in range(99))
    ids = made._before(words)
    assert ids[0] == Tokenizer(tmp_path).added["<|startofprev|>"]
    assert len(ids) == 1 + 31
    assert words.endswith(Tokenizer(tmp_path).decode(ids[1:]))
    assert made._before("  ") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"no_timestamps_token_id": None},
        {"decoder_start_token_id": "start"},
        {"lang_to_id": ["<|en|>"]},
        {"suppress_tokens": [-1]},
        {"alignment_heads": [[1]]},
        {"eos_token_id": True},
    ],
)
def test_what_the_checkpoint_says_of_its_tokens_is_checked(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path = write_whisper(tmp_path) / "generation_config.json"
    told = json.loads(path.read_text())
    whisper_tokens(tmp_path)
    path.write_text(json.dumps(told | changes))
    with pytest.raises(CheckpointBroken, match="lacks tokens"):
        whisper_tokens(tmp_path)


def test_what_says_the_same_again_is_compressed_further() -> None:
    once, often = (Segment(0, 1, " again and" * times, [], 0) for times in (1, 40))
    assert often.compression > 2.4 > once.compression
    assert Segment(0, 1, "", [], 0).compression == 0


def test_every_language_has_a_name_of_its_own() -> None:
    assert len(set(LANGUAGES.values())) == len(LANGUAGES) >= 99
