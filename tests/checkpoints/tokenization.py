"""Tokenizers trained on a small text, of the kinds that published checkpoints have."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel, TemplateProcessing
from tokenizers.trainers import BpeTrainer

CORPUS = """
The quick brown fox jumps over the lazy dog while the small engine counts the pages of an open book.
A picture of a harbour at dusk: three boats, two people on the pier, and a lantern above the water.
What is in this image? Describe the photograph in one short sentence, and name the colours you see.
How many birds are there? There are seven birds, and the largest of them is looking at the camera.
The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is Tokyo.
You are a helpful assistant. Answer the question with a number, then explain how you found it.
Hello! Thank you for your question. Yes, I can help with that; no, there is nothing else to do.
def add(first, second):
    return first + second  # the sum of 12 and 30 is 42
{"name": "weather", "arguments": {"city": "Paris", "days": 3}}
Grüße aus Köln, où l'été est très chaud. El niño comió una manzana. 東京は日本の首都です。
Привет, мир! 你好，世界。 One, two, three, four, five, six, seven, eight, nine, ten.
"""

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen's split and special tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special += ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]
    special += ["<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_level_tokenizer(special, split=QWEN_SPLIT)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def byte_level_tokenizer(special: list[str], split: str | None = None) -> Tokenizer:
    """Byte-level BPE trained on the small corpus above, special tokens last as Qwen has them."""
    tokenizer = Tokenizer(models.BPE())
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=False)
    trainer = BpeTrainer(
        vocab_size=620,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in special]
    )
    return tokenizer


def gemma_tokenizer() -> Tokenizer:
    """As Gemma's converts: nothing put before a text, line breaks in tokens of their own."""
    added = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
    tokenizer = sentencepiece_tokenizer(
        [*added, "<image_soft_token>"], named=("<pad>", "<eos>", "<bos>", "<unk>"), start="<bos>"
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    breaks = ["\n" * count for count in range(1, 5)]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in breaks])
    return tokenizer


def sentencepiece_tokenizer(
    added: list[str],
    named: tuple[str, ...] = ("<unk>", "<s>", "</s>"),
    start: str = "<s>",
) -> Tokenizer:
    """BPE with byte fallback and a word mark, as Llama's SentencePiece model converts to.

    The vocabulary begins with `named`; `start` comes before every text.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = _word_mark()
    trained.train_from_iterator(
        [word for line in CORPUS.splitlines() if line.isascii() for word in line.split()],
        BpeTrainer(vocab_size=360, show_progress=False),
    )
    learned = json.loads(trained.to_str())["model"]
    pieces = [*named, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = _word_mark()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    special = [*named, *added]
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in special]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A",
        pair=f"{start} $A {start} $B",
        special_tokens=[(start, named.index(start))],
    )
    return tokenizer


def _word_mark() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
