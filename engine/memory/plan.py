"""What fits: memory of a model before it is loaded, and whether a request can ever run on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from engine.attention.limits import unsupported
from engine.device.cards import card
from engine.device.host_memory import available_memory, cpu_has_native
from engine.errors import EngineError
from engine.memory import card_memory
from engine.memory.checkpoint import ITEMSIZE, Checkpoint, read_checkpoint
from engine.memory.shares import share_of, undivided
from engine.models.sound_chunks import AT_ONCE
from engine.options import PROMPT_ROWS

GIB = 1 << 30
KV_SHARE = 0.25  # of what is left, when nobody says how large the KV cache is
SLACK_SHARE = 0.1  # of the weights: allocator rounding, prepacked copies
KV_ITEMSIZE = ITEMSIZE | {"float8_e4m3fn": 1}
PROCESS_BYTES = GIB // 2  # interpreter and libraries of the engine process
WHISPER_POSITIONS = 1500  # thirty seconds
QWEN2_VL_MAX_PIXELS = 28 * 28 * 1280  # transformers' default where the processor config has none


class PlanError(EngineError):
    """The model cannot run as configured; the message has the arithmetic and the keys that help."""


@dataclass(slots=True, frozen=True)
class Plan:
    """Memory of one engine in bytes. One page more than `pages` is held: page 0 takes padding.

    Of an engine of several ranks all but `parameters` is what rank 0 takes, which takes the most.
    """

    architecture: str
    dtype: str
    parameters: int
    rank_parameters: int
    weights_bytes: int
    slack_bytes: int
    activation_bytes: int
    encoder_bytes: int
    encoder_cache_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int
    pages: int
    page_size: int
    max_len: int
    max_sequences: int
    available_bytes: int
    ranks: int = 1
    modalities: tuple[str, ...] = ()

    @property
    def tower(self) -> str:
        """What the towers of its modalities are called."""
        return "audio tower" if self.modalities == ("audio",) else "image tower"

    @property
    def tokens(self) -> int:
        return self.pages * self.page_size

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + self.kv_bytes

    @property
    def fixed_bytes(self) -> int:
        """Everything but the KV cache."""
        fixed = self.weights_bytes + self.slack_bytes + self.activation_bytes
        return fixed + self.encoder_bytes + self.encoder_cache_bytes

    def concurrency(self, length: int) -> int:
        """How many sequences of `length` tokens, none of them shared, can run at once."""
        return min(self.max_sequences, self.pages // math.ceil(length / self.page_size))


def plan(
    folder: str | Path,
    *,
    dtype: str,
    device: str,
    page_size: int,
    max_len: int | None,
    max_tokens_per_step: int,
    max_sequences: int,
    kv_cache_gb: float | None,
    encoder_cache_bytes: int,
    modalities: tuple[str, ...],
    available_bytes: int | None = None,
    kv_dtype: str | None = None,
    graphs: bool = False,
    memory_fraction: float = 1.0,
    tensor_parallel: int = 1,
) -> Plan:
    """Plan the memory of the checkpoint in `folder` for a resolved `dtype` (see `resolve_dtype`).

    With `tensor_parallel` it is that of one rank. On the CPU each rank may take its part of what is
    available, on `cuda` the card is asked what is free, unless `available_bytes` says what one may
    take. Raises DeviceMissing when there is no card, PlanError with the arithmetic when it cannot
    fit or be split, ModelUnsupported when `folder` is no checkpoint.
    """
    checkpoint = read_checkpoint(folder)
    for modality in modalities:
        if modality not in checkpoint.modalities:
            plural = modality if modality == "audio" else f"{modality}s"
            raise PlanError(
                f"{checkpoint.architecture} takes no {plural}: set media.{modality}.limit=0"
            )
    if max_len is not None and max_len > checkpoint.positions:
        raise PlanError(
            f"model.max_len={max_len} is more than the model's {checkpoint.positions} positions"
        )
    if "image" in modalities and checkpoint.image_tokens is not None:
        reason = span_admission(checkpoint.image_tokens, max_tokens_per_step, max_sequences)
        if reason is not None:
            raise PlanError(reason)
    reason = undivided(
        checkpoint.heads, checkpoint.kv_heads, checkpoint.intermediate, tensor_parallel
    )
    if reason is not None:
        raise PlanError(reason)
    length = max_len or checkpoint.positions
    itemsize = ITEMSIZE[dtype]
    tower = bool(modalities) * checkpoint.tower_parameters
    parameters = checkpoint.decoder_parameters + tower
    checkpoint = share_of(checkpoint, tensor_parallel)
    rank_parameters = checkpoint.decoder_parameters + tower
    weights = rank_parameters * itemsize
    images = 1  # whose towers run at once
    if modalities:
        images = max(1, max_tokens_per_step // most_image_tokens(checkpoint, length))
    if device == "cpu":
        if available_bytes is None:
            available_bytes = available_memory() // tensor_parallel
        slack = int(weights * SLACK_SHARE) + PROCESS_BYTES
        if checkpoint.tied:  # the output projection is prepacked, the table stays
            slack += checkpoint.embedding_parameters * itemsize
        activations = activation_bytes(
            checkpoint, itemsize, max_tokens_per_step, max_sequences, length
        )
    else:
        reason = unsupported(dtype, checkpoint.head_dim)
        if reason is not None:
            raise PlanError(reason)
        slack = card_memory.overhead_bytes(checkpoint, weights, max_sequences, graphs)
        activations = card_memory.activation_bytes(
            checkpoint, itemsize, max_tokens_per_step, max_sequences
        )
        if available_bytes is None:
            there = card()
            available_bytes = card_memory.usable_bytes(
                there.total_bytes, there.free_bytes, memory_fraction
            )
    tower = 0
    if "image" in modalities or "video" in modalities:
        tower = images * encoder_bytes(checkpoint, itemsize, most_patches(checkpoint, length))
    if "audio" in modalities:
        tower = max(tower, sound_encoder_bytes(checkpoint, itemsize))
    if "video" in modalities:  # one alone may fill a prompt
        merge = (checkpoint.vision or {}).get("spatial_merge_size", 1)
        tower = max(tower, encoder_bytes(checkpoint, itemsize, length * merge**2))
    without_cache = Plan(
        architecture=checkpoint.architecture,
        dtype=dtype,
        parameters=parameters,
        rank_parameters=rank_parameters,
        weights_bytes=weights,
        slack_bytes=slack,
        activation_bytes=activations,
        encoder_bytes=tower,
        encoder_cache_bytes=encoder_cache_bytes if modalities else 0,
        kv_bytes=0,
        kv_bytes_per_token=2
        * checkpoint.layers
        * checkpoint.kv_heads
        * checkpoint.head_dim
        * KV_ITEMSIZE[kv_dtype or dtype],
        pages=0,
        page_size=page_size,
        max_len=length,
        max_sequences=max_sequences,
        available_bytes=available_bytes,
        ranks=tensor_parallel,
        modalities=modalities,
    )
    return with_kv_cache(without_cache, kv_cache_gb, everything=device == "cuda")


def with_kv_cache(plan: Plan, kv_cache_gb: float | None, everything: bool = False) -> Plan:
    """Give the plan as many pages as it was told to have, or as there is room for.

    With `everything` the room is all that is left: more pages keep more prefixes.
    """
    page_bytes = plan.kv_bytes_per_token * plan.page_size
    one = math.ceil(plan.max_len / plan.page_size)
    left = plan.available_bytes - plan.fixed_bytes
    if kv_cache_gb is None:
        share = int(max(left, 0) * (1.0 if everything else KV_SHARE)) // page_bytes - 1
        pages = max(one, share if everything else min(share, one * plan.max_sequences))
    else:
        pages = int(kv_cache_gb * GIB) // page_bytes - 1
    kv_bytes = (pages + 1) * page_bytes
    if pages < one:
        most = max(pages, 0) * plan.page_size
        raise PlanError(
            f"engine.kv_cache_gb={kv_cache_gb:g} holds {most} tokens at "
            f"{size(plan.kv_bytes_per_token)} each, one sequence of model.max_len={plan.max_len} "
            f"takes {size((one + 1) * page_bytes)}: raise engine.kv_cache_gb or lower model.max_len"
        )
    if kv_bytes > left:
        what = "KV cache" if kv_cache_gb is not None else "KV cache for one sequence"
        raise PlanError(
            f"{arithmetic(plan)} + {what} {size(kv_bytes)} = {size(plan.fixed_bytes + kv_bytes)}, "
            f"but {size(plan.available_bytes)} are available: {helpful_keys(plan, kv_cache_gb)}"
        )
    return replace(plan, pages=pages, kv_bytes=kv_bytes)


def arithmetic(plan: Plan) -> str:
    """The terms of everything but the KV cache as a sum."""
    terms = {
        "weights": plan.weights_bytes,
        "slack": plan.slack_bytes,
        "activations": plan.activation_bytes,
        plan.tower: plan.encoder_bytes,
        "encoder cache": plan.encoder_cache_bytes,
    }
    return " + ".join(f"{name} {size(count)}" for name, count in terms.items() if count)


def helpful_keys(plan: Plan, kv_cache_gb: float | None) -> str:
    keys = ["model.max_len" if kv_cache_gb is None else "engine.kv_cache_gb"]
    keys.append("engine.max_tokens_per_step")
    if plan.encoder_cache_bytes:
        keys += ["cache.encoder_gb", *(f"media.{kind}.limit" for kind in plan.modalities)]
    lower = f"lower {' or '.join([', '.join(keys[:-1]), keys[-1]])}"
    return f"{lower}, or take model.dtype=bfloat16" if plan.dtype == "float32" else lower


def activation_bytes(
    checkpoint: Checkpoint, itemsize: int, tokens: int, sequences: int, max_len: int
) -> int:
    """Most bytes alive in a step: one layer's tensors, one sequence's gathered KV and mask, logits.

    A layer holds residual, normed, output, q, k, v, gate, up and product for each token.
    Logits are float32 and exist three times while sampling (logits, filtered, probabilities), twice
    for prompt tokens whose log-probabilities are wanted.
    """
    attention = (checkpoint.heads + 2 * checkpoint.kv_heads) * checkpoint.head_dim
    layer = tokens * (4 * checkpoint.hidden + 2 * attention + 3 * checkpoint.intermediate)
    gathered = 2 * max_len * checkpoint.kv_heads * checkpoint.head_dim
    mask = min(tokens, max_len) * max_len * itemsize
    rows = 3 * min(sequences, tokens) + 2 * min(PROMPT_ROWS, tokens)
    logits = rows * checkpoint.vocabulary * 4
    return (layer + gathered) * itemsize + mask + logits


def encoder_bytes(checkpoint: Checkpoint, itemsize: int, patches: int) -> int:
    """Most bytes alive in the image tower: one layer's tensors for these patches."""
    vision = checkpoint.vision or {}
    hidden = vision.get("embed_dim") or vision.get("hidden_size", 1024)
    intermediate = vision.get("intermediate_size") or int(hidden * vision.get("mlp_ratio", 4))
    return int(patches * (8 * hidden + 2 * intermediate) * itemsize)


def sound_encoder_bytes(checkpoint: Checkpoint, itemsize: int) -> int:
    """Most bytes alive in the audio tower: one layer's tensors for chunks of thirty seconds."""
    audio = checkpoint.audio or {}
    hidden = audio.get("d_model", 384)
    intermediate = audio.get("encoder_ffn_dim") or 4 * hidden
    places = AT_ONCE * audio.get("max_source_positions", WHISPER_POSITIONS)
    return int(places * (8 * hidden + 2 * intermediate) * itemsize)


def most_patches(checkpoint: Checkpoint, max_len: int) -> int:
    """Patches of the largest image that the processor makes and that a prompt can hold."""
    vision = checkpoint.vision or {}
    patch = vision.get("patch_size", 14)
    if "spatial_merge_size" not in vision:
        return int(vision.get("image_size", 336) // patch) ** 2 + 1
    size_options = checkpoint.processor.get("size") or {}
    pixels = (
        checkpoint.processor.get("max_pixels")
        or size_options.get("max_pixels")
        or size_options.get("longest_edge")
        or QWEN2_VL_MAX_PIXELS
    )
    return int(min(pixels // patch**2, max_len * vision["spatial_merge_size"] ** 2))


def most_image_tokens(checkpoint: Checkpoint, max_len: int) -> int:
    """Placeholders of the largest image."""
    if checkpoint.image_tokens is not None:
        return checkpoint.image_tokens
    merge = (checkpoint.vision or {}).get("spatial_merge_size", 1)
    return max(1, most_patches(checkpoint, max_len) // merge**2)


def admission(
    prompt_tokens: int, max_tokens: int, max_len: int, pages: int, page_size: int
) -> str | None:
    """Return why a request of this length can never run, or None when it can."""
    total = prompt_tokens + max_tokens
    if total > max_len:
        return (
            f"the prompt has {prompt_tokens} tokens and {max_tokens} are asked for, "
            f"together {total}; the model takes {max_len}"
        )
    if math.ceil(total / page_size) > pages:
        return (
            f"the prompt has {prompt_tokens} tokens and {max_tokens} are asked for, "
            f"together {total}; the KV cache holds {pages * page_size}"
        )
    return None


def span_admission(length: int, max_tokens_per_step: int, max_sequences: int) -> str | None:
    """Return why an item of `length` tokens that see each other can never run, or None if it can.

    One step computes all of it, beside a token of every other sequence that may run.
    """
    needed = length + max_sequences - 1
    if length == 0 or needed <= max_tokens_per_step:
        return None
    return (
        f"an item of {length} tokens that attend to each other is computed in one step: with "
        f"engine.max_sequences={max_sequences} that takes engine.max_tokens_per_step={needed}, "
        f"not {max_tokens_per_step}"
    )


def resolve_dtype(
    requested: str, folder: str | Path, device: str, available_bytes: int | None = None
) -> str:
    """Turn `auto` into a type: the checkpoint's, or float32 on a CPU that has to emulate it.

    On a card a float32 checkpoint becomes bfloat16: FlashInfer has no float32 kernels.

    Float32 is taken when its weights would fit twice over; it prefills several times faster there.
    """
    if requested != "auto":
        return requested
    checkpoint = read_checkpoint(folder)
    if device != "cpu":
        return "bfloat16" if checkpoint.dtype == "float32" else checkpoint.dtype
    if cpu_has_native(checkpoint.dtype):
        return checkpoint.dtype
    parameters = checkpoint.decoder_parameters + checkpoint.tower_parameters
    available = available_memory() if available_bytes is None else available_bytes
    return "float32" if 2 * parameters * ITEMSIZE["float32"] <= available else checkpoint.dtype


def size(count: int) -> str:
    """Bytes as a person reads them."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.2f} {units[0]}"
