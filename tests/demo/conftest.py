from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import ImageFont
from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration

from tools.demo import checkpoint, fonts
from tools.demo.tokenizer import train_tokenizer

ONLY_FACE = Path("the font of Pillow")


def only_font_of_pillow(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(fonts, "faces", lambda held_out: [ONLY_FACE])
    patched.setattr(fonts, "face", lambda file, size: ImageFont.load_default(size))


@pytest.fixture
def one_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """The font that Pillow brings along, on whatever machine."""
    only_font_of_pillow(monkeypatch)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    with pytest.MonkeyPatch.context() as patched:
        only_font_of_pillow(patched)
        return train_tokenizer(examples=80)


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    made = checkpoint.new_model(tokenizer).eval()
    with torch.no_grad():  # fresh weights say nearly the same of everything
        for value in made.parameters():
            if value.ndim > 1:
                value.mul_(3)
    return made
