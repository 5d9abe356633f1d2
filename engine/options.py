"""Settings of the engine, which the launcher makes of the composed recipe."""

from __future__ import annotations

from dataclasses import dataclass

PROMPT_ROWS = 256


SPECULATION_TOKENS = 8


@dataclass(slots=True, frozen=True)
class KernelOptions:
    """Where compiled kernels are, and whether a start may compile what is missing.

    `folder` holds those of one kind of machine if it is `named`, else a folder for each kind.
    """

    folder: str
    named: bool
    command: str  # what compiles them, for people
    architectures: tuple[str, ...] = ()  # empty: the card's
    jit: bool = True


@dataclass(slots=True, frozen=True)
class EngineOptions:
    """Settings of one engine: no `auto`, no choice still to be made but those of the plan.

    `engine.memory.plan.plan` finds `pages` and `max_len`; an engine is made of `Plan.resolved`.
    """

    model_path: str  # a local folder with config.json and safetensors
    dtype: str  # float32, bfloat16 or float16
    device: str  # cpu or cuda
    threads: int
    page_size: int
    pages: int  # size of the KV pool; 0: not planned yet
    max_len: int  # 0: all positions of the checkpoint
    max_tokens_per_step: int
    max_sequences: int
    prefix_cache: bool
    encoder_cache_bytes: int
    modalities: tuple[str, ...] = ()  # that requests may bring; empty loads no tower
    state_pages: int = 0  # for what decoders attend to across; 0: nothing, or not planned yet
    kv_cache_gb: float | None = None  # None: what the plan leaves, or a card has room for
    quantization: str | None = None  # of products: fp8 on CUDA, int8 and int4 on the CPU
    native: str = "auto"  # our library's variant, or auto or torch, on the CPU
    fuse: bool = True
    kv_dtype: str | None = None  # None: the model's; float8_e4m3fn on CUDA
    graphs: bool = False  # record decoding, on CUDA
    prefill_graphs: int = 0  # tokens up to which other batches are recorded in pieces, on CUDA
    memory_fraction: float = 1.0  # of the card
    measured: bool = False  # pages are measured on the card, not taken as planned
    tower_graphs: bool = False  # record towers for small pictures, on CUDA
    prefill_attention: str = "fa2"  # or fa3 or auto, on CUDA
    decode_products: str = "library"  # or own or auto, on CUDA
    vision_attention: str = "sdpa"  # or flashinfer or auto, on CUDA
    vision_attention_from: int = 0  # patches from which auto takes FlashInfer
    kernels: KernelOptions | None = None  # on CUDA; None: FlashInfer compiles when it needs one
    prefill_seconds: float | None = None  # of prompts in a step, while answers are under way
    step_seconds: float = 300.0  # longest silence of an engine that is not taken for hung
    speculation: str | None = None  # ngram: drafts from a sequence's own tokens, on the CPU
    speculation_tokens: int = (
        SPECULATION_TOKENS  # most that are drafted for one sequence in one step
    )
    tensor_parallel: int = 1  # processes (ranks) that share the model

    @property
    def max_prompt_rows(self) -> int:
        """Prompt tokens whose log-probabilities one step computes: a row of logits is large."""
        return min(PROMPT_ROWS, self.max_tokens_per_step)
