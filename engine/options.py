"""What the engine can be told; the launcher fills it from the composed recipe."""

from __future__ import annotations

from dataclasses import dataclass

PROMPT_ROWS = 256


@dataclass(slots=True, frozen=True)
class EngineOptions:
    """Resolved settings of one engine: no `auto`, no choice still to be made elsewhere."""

    model_path: str  # a local folder with config.json and safetensors
    dtype: str  # float32, bfloat16 or float16
    device: str  # cpu or cuda
    threads: int
    page_size: int
    pages: int  # size of the KV pool, from engine.memory.plan
    max_len: int
    max_tokens_per_step: int
    max_sequences: int
    prefix_cache: bool
    encoder_cache_bytes: int
    modalities: tuple[str, ...] = ()  # towers to load: image; empty loads none
    fuse: bool = True
    kv_dtype: str | None = None  # None: the model's; float8_e4m3fn on CUDA
    graphs: bool = False  # record decoding, on CUDA
    memory_fraction: float | None = None  # of the card; pages are then measured, not taken as given
    vision_attention: str = "sdpa"  # or flashinfer or auto, on CUDA
    vision_attention_from: int = 0  # patches from which auto takes FlashInfer
    tensor_parallel: int = 1  # processes (ranks) that share the model

    @property
    def max_prompt_rows(self) -> int:
        """Prompt tokens whose log-probabilities one step computes: a row of logits is large."""
        return min(PROMPT_ROWS, self.max_tokens_per_step)
