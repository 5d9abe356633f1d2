"""Tiny random checkpoints with every file a real one has, for tests and trials without a model hub.

`python -m tests.checkpoints qwen2_vl out/` writes one. Equal seeds give equal weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel, TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import nn

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

EMBEDDINGS = 0.7  # standard deviation
GEMMA_EMBEDDINGS = 0.2  # which Gemma multiplies by the root of its width, and also decodes with

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

CHATML = """
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

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

QWEN_VL_CHATML = """
{%- macro part(content) -%}
{%- if content.type in ('image', 'image_url') or 'image' in content or 'image_url' in content -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif content.type == 'video' or 'video' in content -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in content -%}
{{ content.text }}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for content in message.content -%}{{ part(content) }}{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

# As the published LLaVA template does, this one writes a message's images before its text.
LLAVA_CHAT = """
{%- for message in messages -%}
{%- if message.role != 'system' -%}{{ message.role | upper }}: {% endif -%}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for content in message.content if content.type == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for content in message.content if content.type == 'text' -%}{{ content.text }}{%- endfor -%}
{%- endif -%}
{{ ' ' }}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}
"""

# As the published Gemma 3 template does, this one trims texts and lets users and models alternate.
GEMMA_CHAT = """
{%- set first = namespace(prefix='') -%}
{{ bos_token }}
{%- if messages[0].role == 'system' -%}
{%- set given = messages[0].content -%}
{%- set first.prefix = (given if given is string else given[0].text) + '\n\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{{- first.prefix if loop.first -}}
{%- if message.content is string -%}
{{ message.content | trim }}
{%- else -%}
{%- for item in message.content -%}
{{ '<start_of_image>' if item.type == 'image' else item.text | trim }}
{%- endfor -%}
{%- endif -%}
{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""

# As Llama 3's, which knows nothing of media: contents are text.
LLAMA3_CHAT = """
{{- bos_token -}}
{%- for message in messages -%}
<|start_header_id|>{{ message['role'] }}<|end_header_id|>

{{ message['content'] | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
"""


def write_llama(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Llama with a GPT-2-like tokenizer and ChatML, in the shape of SmolLM2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    tokenizer = byte_level_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    config = LlamaConfig(
        **_decoder(tokenizer, layers=3),
        **_ids(tokenizer, bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>"),
        tie_word_embeddings=False,
    )
    _write_model(folder, LlamaForCausalLM(config), seed, dtype)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    _write_tokenizer(folder, tokenizer, CHATML, names)
    _write_generation_config(folder, tokenizer, ["<|im_end|>"], bos="<|im_start|>")
    return folder


def write_qwen2(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Qwen2 (biased QKV, tied embeddings)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = Path(folder)
    tokenizer = qwen_tokenizer()
    config = Qwen2Config(
        **_decoder(tokenizer, layers=3),
        **_ids(tokenizer, bos="<|endoftext|>", eos="<|im_end|>"),
        tie_word_embeddings=True,
    )
    _write_model(folder, Qwen2ForCausalLM(config), seed, dtype)
    _write_tokenizer(folder, tokenizer, CHATML, QWEN_NAMES)
    _write_generation_config(folder, tokenizer, ["<|im_end|>", "<|endoftext|>"])
    return folder


def write_qwen3(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Qwen3 (normalised queries and keys, head size apart from hidden size)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = Path(folder)
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(
        **(_decoder(tokenizer, layers=3) | {"head_dim": 32}),
        **_ids(tokenizer, bos="<|endoftext|>", eos="<|im_end|>"),
        tie_word_embeddings=False,
    )
    _write_model(folder, Qwen3ForCausalLM(config), seed, dtype)
    _write_tokenizer(folder, tokenizer, QWEN3_CHATML, QWEN_NAMES)
    _write_generation_config(folder, tokenizer, ["<|im_end|>", "<|endoftext|>"])
    return folder


def write_qwen2_vl(
    folder: str | Path, seed: int = 0, dtype: str = "float32", flat: bool = False
) -> Path:
    """A Qwen2-VL; `flat` writes config.json as published checkpoints have it, on one level."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder = Path(folder)
    tokenizer = qwen_tokenizer()
    config = Qwen2VLConfig(
        text_config={
            **_decoder(tokenizer, layers=4),
            **_ids(tokenizer, bos="<|endoftext|>", eos="<|im_end|>"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    _write_model(folder, Qwen2VLForConditionalGeneration(config), seed, dtype)
    if flat:
        _flatten_qwen2_vl_config(folder)
    _write_tokenizer(folder, tokenizer, QWEN_VL_CHATML, QWEN_NAMES)
    _write_generation_config(folder, tokenizer, ["<|im_end|>", "<|endoftext|>"])
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "min_pixels": 4 * 28 * 28,
            "max_pixels": 64 * 28 * 28,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )
    return folder


def write_llava(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A LLaVA-1.5: CLIP tower of 16 patches, Llama with a SentencePiece-like tokenizer."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    folder = Path(folder)
    tokenizer = sentencepiece_tokenizer(["<image>", "<pad>"])
    ids = _ids(tokenizer, bos="<s>", eos="</s>", pad="<pad>")
    config = LlavaConfig(
        text_config={"model_type": "llama", **_decoder(tokenizer, layers=3), **ids},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 32,
        },
        image_token_index=tokenizer.token_to_id("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    _write_model(folder, LlavaForConditionalGeneration(config), seed, dtype)
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "image_token": "<image>",
    }
    _write_tokenizer(folder, tokenizer, LLAVA_CHAT, names)
    _write_generation_config(folder, tokenizer, ["</s>"], bos="<s>", pad="<pad>")
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": 56},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": 56, "width": 56},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )
    return folder


def write_gemma3_text(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Gemma 3 of text alone: windows in three layers of four, capped logits."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = Path(folder)
    tokenizer = gemma_tokenizer()
    config = Gemma3TextConfig(**_gemma3_decoder(tokenizer), final_logit_softcapping=6.0)
    _write_model(folder, Gemma3ForCausalLM(config), seed, dtype, GEMMA_EMBEDDINGS)
    _write_gemma3_files(folder, tokenizer)
    return folder


def write_gemma3(folder: str | Path, seed: int = 0, dtype: str = "float32") -> Path:
    """A Gemma 3: pictures of 16 tokens, more than its windows reach back."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    folder = Path(folder)
    tokenizer = gemma_tokenizer()
    config = Gemma3Config(
        text_config=_gemma3_decoder(tokenizer),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 7,
            "vision_use_head": False,
        },
        mm_tokens_per_image=16,
        boi_token_index=tokenizer.token_to_id("<start_of_image>"),
        eoi_token_index=tokenizer.token_to_id("<end_of_image>"),
        image_token_index=tokenizer.token_to_id("<image_soft_token>"),
    )
    _write_model(folder, Gemma3ForConditionalGeneration(config), seed, dtype, GEMMA_EMBEDDINGS)
    _write_gemma3_files(folder, tokenizer)
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_pan_and_scan": None,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_seq_length": 16,
            "image_std": [0.5, 0.5, 0.5],
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": 56, "width": 56},
        },
    )
    _write_json(
        folder / "processor_config.json",
        {"image_seq_length": 16, "processor_class": "Gemma3Processor"},
    )
    return folder


def _gemma3_decoder(tokenizer: Tokenizer) -> dict[str, Any]:
    window, everything = "sliding_attention", "full_attention"
    return {
        **_decoder(tokenizer, layers=4),
        **_ids(tokenizer, bos="<bos>", eos="<eos>", pad="<pad>"),
        "query_pre_attn_scalar": 24,
        "sliding_window": 12,
        "layer_types": [window, window, everything, window],
        "rope_parameters": {
            window: {"rope_type": "default", "rope_theta": 1e4},
            everything: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    }


def _write_gemma3_files(folder: Path, tokenizer: Tokenizer) -> None:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    _write_tokenizer(
        folder,
        tokenizer,
        GEMMA_CHAT,
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            **named,
        },
    )
    _write_generation_config(folder, tokenizer, ["<eos>", "<end_of_turn>"], "<bos>", "<pad>")


def write_ultravox(
    folder: str | Path,
    seed: int = 0,
    dtype: str = "float32",
    ln_mid: bool = True,
    tied: bool = False,
) -> Path:
    """An Ultravox of version 0.5's shape that hears 1.6 seconds at once, all weights in it."""
    from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor

    from engine.models.ultravox_model import UltravoxConfig, UltravoxModel

    folder = Path(folder)
    tokenizer = byte_level_tokenizer(
        [f"<|{name}|>" for name in ("begin_of_text", "end_of_text", "reserved_special_token_0")]
        + [f"<|{name}|>" for name in ("eot_id", "start_header_id", "end_header_id")]
    )
    ids = _ids(tokenizer, bos="<|begin_of_text|>", eos="<|eot_id|>")
    config = UltravoxConfig(
        audio_config=WhisperConfig(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=64,
            num_mel_bins=16,
            max_source_positions=80,
        ),
        text_config=LlamaConfig(**_decoder(tokenizer, layers=3), **ids, tie_word_embeddings=tied),
        hidden_size=96,
        stack_factor=8,
        projector_act="swiglu",
        projector_ln_mid=ln_mid,
    )
    _write_model(folder, UltravoxModel(config), seed, dtype)
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    _write_tokenizer(folder, tokenizer, LLAMA3_CHAT, names)
    _write_generation_config(
        folder, tokenizer, ["<|eot_id|>", "<|end_of_text|>"], "<|begin_of_text|>", "<|eot_id|>"
    )
    WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    return folder


WRITERS: dict[str, Callable[..., Path]] = {
    "llama": write_llama,
    "qwen2": write_qwen2,
    "qwen3": write_qwen3,
    "qwen2_vl": write_qwen2_vl,
    "llava": write_llava,
    "gemma3_text": write_gemma3_text,
    "gemma3": write_gemma3,
    "ultravox": write_ultravox,
}

QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


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


def _decoder(tokenizer: Tokenizer, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": math.ceil(tokenizer.get_vocab_size() / 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
    }


def _ids(tokenizer: Tokenizer, **names: str) -> dict[str, Any]:
    return {f"{role}_token_id": tokenizer.token_to_id(text) for role, text in names.items()}


def _write_model(
    folder: Path, model: Any, seed: int, dtype: str, embeddings: float = EMBEDDINGS
) -> None:
    randomise(model, seed, embeddings)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def randomise(model: nn.Module, seed: int, embeddings: float = EMBEDDINGS) -> None:
    """Weights of a size that lets every layer and every image show in the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and name.endswith("bias"):
            value = 0.1 * noise
        elif parameter.ndim == 1:
            value = 1 + 0.1 * noise
        elif "embed" in name and "patch" not in name:
            value = embeddings * noise
        elif "lm_head" in name:
            value = 0.4 * noise
        else:
            value = 1.3 * noise / math.sqrt(parameter[0].numel())
        parameter.data.copy_(value)


def _flatten_qwen2_vl_config(folder: Path) -> None:
    path = folder / "config.json"
    nested = json.loads(path.read_text())
    text = nested.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("layer_types", None)
    text.pop("model_type")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    _write_json(path, text | nested)


def _write_tokenizer(
    folder: Path, tokenizer: Tokenizer, template: str, names: dict[str, str]
) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
            "chat_template": template,
            **names,
        },
    )


def _write_generation_config(
    folder: Path,
    tokenizer: Tokenizer,
    ends: list[str],
    bos: str = "<|endoftext|>",
    pad: str = "<|endoftext|>",
) -> None:
    ids = [tokenizer.token_to_id(text) for text in ends]
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": tokenizer.token_to_id(bos),
            "eos_token_id": ids if len(ids) > 1 else ids[0],
            "pad_token_id": tokenizer.token_to_id(pad),
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.checkpoints")
    parser.add_argument("family", choices=sorted(WRITERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args(arguments)
    print(WRITERS[options.family](options.folder, options.seed, options.dtype))
    return 0


if __name__ == "__main__":
    sys.exit(main())
