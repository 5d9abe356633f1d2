"""A family's placeholders are the tokens that the checkpoint's own configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer

from engine.models.registry import family_for
from tests.checkpoints import WRITERS


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3"])
def test_the_placeholder_of_an_image_is_the_token_of_the_configuration(
    family: str, tmp_path: Path
) -> None:
    folder = WRITERS[family](tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    placeholder = tokenizer.token_to_id(family_for(folder).placeholder("image"))
    assert placeholder is not None
    assert placeholder == transformers.AutoConfig.from_pretrained(folder).image_token_id
