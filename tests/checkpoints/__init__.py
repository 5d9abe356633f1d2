"""Tiny random checkpoints with every file a real one has, for tests and trials without a model hub.

`python -m tests.checkpoints qwen2_vl out/` writes one. Equal seeds give equal weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.checkpoints.bert import write_bert, write_bert_reranker
from tests.checkpoints.gemma3 import write_gemma3, write_gemma3_text
from tests.checkpoints.llama import write_llama
from tests.checkpoints.llava import write_llava
from tests.checkpoints.qwen import write_qwen2, write_qwen3
from tests.checkpoints.qwen2_vl import write_qwen2_vl
from tests.checkpoints.ultravox import write_ultravox
from tests.checkpoints.whisper import write_whisper

__all__ = [
    "ENCODERS",
    "WRITERS",
    "write_bert",
    "write_bert_reranker",
    "write_gemma3",
    "write_gemma3_text",
    "write_llama",
    "write_llava",
    "write_qwen2",
    "write_qwen2_vl",
    "write_qwen3",
    "write_ultravox",
    "write_whisper",
]

WRITERS: dict[str, Callable[..., Path]] = {
    "llama": write_llama,
    "qwen2": write_qwen2,
    "qwen3": write_qwen3,
    "qwen2_vl": write_qwen2_vl,
    "llava": write_llava,
    "gemma3_text": write_gemma3_text,
    "gemma3": write_gemma3,
    "ultravox": write_ultravox,
    "bert": write_bert,
    "bert_reranker": write_bert_reranker,
    "whisper": write_whisper,
}
ENCODERS = frozenset({"bert", "bert_reranker"})  # which generate nothing
