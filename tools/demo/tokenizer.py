"""The demo model's tokenizer: byte-level BPE trained on the generator's own questions."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)  # fmt: skip
from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast

from tools.demo import chat
from tools.demo.generator import HARDER, KINDS, random_example

VOCABULARY = 1024
# Qwen2-VL's special tokens, in its order
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# How Qwen2's tokenizer splits text before BPE: every digit is a piece of its own.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPELLED = re.compile(r"[A-Z]{2,}")  # letter by letter, so their pairs make no token


def train_tokenizer(examples: int = 6000, seed: int = 7) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on what the generator says."""
    return byte_level(_corpus(examples, seed), SPECIAL, chat.TEMPLATE)


def byte_level(
    corpus: Iterable[str], special: Sequence[str], template: str
) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on texts; `special` begins as `SPECIAL` does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token="<|im_end|>",  # noqa: S106 - a token of text
        pad_token="<|endoftext|>",  # noqa: S106 - a token of text
        unk_token=None,
        additional_special_tokens=list(special[1:]),
        model_max_length=2048,
        chat_template=template,
    )


def _corpus(examples: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    kinds = sorted(set(KINDS) - set(HARDER))
    for number in range(examples):
        kind = kinds[number % len(kinds)]
        for turn in random_example(rng, kind, 32).turns:
            yield SPELLED.sub("", turn.question)
            yield SPELLED.sub("", turn.answer)
        yield "system\nYou are a helpful assistant.\nuser\nassistant\n"
