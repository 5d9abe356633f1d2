"""What transformers takes where a decoder's config.json says nothing, as published ones do."""

from __future__ import annotations

from typing import Any

LLAMA: dict[str, Any] = {  # LlamaConfig
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
WHISPER: dict[str, Any] = {  # WhisperConfig
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "num_mel_bins": 80,
    "vocab_size": 51_865,
    "activation_function": "gelu",
    "tie_word_embeddings": True,
}
GEMMA3: dict[str, Any] = {  # Gemma3TextConfig
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "vocab_size": 262_208,
    "tie_word_embeddings": True,
}
