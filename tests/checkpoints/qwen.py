"""A tiny Qwen2 and a tiny Qwen3."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints.files import (
    CHATML,
    QWEN_NAMES,
    decoder_sizes,
    special_ids,
    write_generation_config,
    write_model,
    write_tokenizer,
)
from tests.checkpoints.tokenization import (
    qwen_tokenizer,
)

QWEN3_CHATML = """
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false -%}
<think>

</think>

{% endif -%}
{%- endif -%}
"""


def write_qwen2(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Qwen2 (biased QKV, tied embeddings)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = Path(folder)
    tokenizer = qwen_tokenizer()
    config = Qwen2Config(
        **decoder_sizes(tokenizer, layers=3),
        **special_ids(tokenizer, bos="<|endoftext|>", eos="<|im_end|>"),
        tie_word_embeddings=True,
    )
    write_model(folder, Qwen2ForCausalLM(config), seed, dtype)
    write_tokenizer(folder, tokenizer, CHATML, QWEN_NAMES)
    write_generation_config(folder, tokenizer, ["<|im_end|>", "<|endoftext|>"])
    return folder


def write_qwen3(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Qwen3 (normalised queries and keys, head size apart from hidden size)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = Path(folder)
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(
        **(decoder_sizes(tokenizer, layers=3) | {"head_dim": 32}),
        **special_ids(tokenizer, bos="<|endoftext|>", eos="<|im_end|>"),
        tie_word_embeddings=False,
    )
    write_model(folder, Qwen3ForCausalLM(config), seed, dtype)
    write_tokenizer(folder, tokenizer, QWEN3_CHATML, QWEN_NAMES)
    write_generation_config(folder, tokenizer, ["<|im_end|>", "<|endoftext|>"])
    return folder
