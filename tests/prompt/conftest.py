from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.prompt.template import ChatTemplate
from appliance.prompt.tokenizer import Tokenizer
from engine.models.registry import family_for
from tests.checkpoints import WRITERS

NAMES = ("llama", "qwen2", "qwen3", "qwen2_vl", "llava", "gemma3")


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: WRITERS[name](root / name) for name in NAMES}


@pytest.fixture(scope="package")
def tokenizers(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer(folder) for name, folder in folders.items()}


@pytest.fixture(scope="package")
def references(folders: dict[str, Path]) -> dict[str, Any]:
    """The tokenizers as transformers loads them."""
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


@pytest.fixture(scope="package")
def template_of(
    folders: dict[str, Path], tokenizers: dict[str, Tokenizer]
) -> Callable[..., ChatTemplate]:
    def make(name: str, source: str | None = None, kwargs: tuple[str, ...] = ()) -> ChatTemplate:
        return ChatTemplate(source, tokenizers[name], family_for(folders[name]), kwargs)

    return make
