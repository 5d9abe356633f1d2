"""Tiny BERTs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from tests.checkpoints.files import write_json, write_model
from tests.checkpoints.tokenization import CORPUS

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def write_bert(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """As all-MiniLM-L6-v2's: uncased WordPiece cut at 16 tokens, positions learned, no template."""
    from transformers import BertModel

    return _write(Path(folder), BertModel, seed, dtype)


def write_bert_reranker(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A cross-encoder as sentence-transformers save them: one label, whose score is a sigmoid."""
    from transformers import BertForSequenceClassification

    return _write(Path(folder), BertForSequenceClassification, seed, dtype, num_labels=1)


def _write(folder: Path, architecture: Any, seed: int, dtype: str, **more: Any) -> Path:
    from transformers import BertConfig

    tokenizer = word_pieces()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        **more,
    )
    write_model(folder, architecture(config), seed, dtype)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 128}
    write_json(folder / "tokenizer_config.json", settings | SPECIAL)
    return folder


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=500, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.enable_truncation(16)  # as sentence-transformers save them
    tokenizer.enable_padding(length=16)
    return tokenizer
