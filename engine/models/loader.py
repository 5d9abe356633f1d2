"""A checkpoint folder to a model in memory, each tensor read once from its mapped file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers.utils import logging as transformers_logging

from engine.attention.backend import (
    PAGED_ATTENTION,
    WHOLE_ATTENTION,
    AttentionShape,
    CrossLayers,
)
from engine.errors import ModelUnsupported
from engine.models.end_tokens import end_tokens
from engine.models.family import Family
from engine.models.registry import family_for

Progress = Callable[[str, float], None]

# what values of config.json that transformers does not take lead to, one way or another
MISFITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(slots=True)
class LoadedModel:
    """A transformers model whose decoder attends through us, and what to know of it.

    Of several ranks each holds its share of the decoder's weights, and `shape` is that of it.
    """

    family: Family
    model: Any
    stack: Any
    shape: AttentionShape
    eos_ids: frozenset[int]
    dtype: torch.dtype
    vocabulary: int  # of all ranks together
    logit_cap: float | None = None  # bounds logits by cap * tanh(logit / cap)
    cross: CrossLayers | None = None  # layers that attend to states beside the sequence


def load_model(
    folder: str,
    dtype: str,
    device: str,
    modalities: tuple[str, ...] = (),
    progress: Progress = lambda phase, fraction: None,
    vision_attention: str = "sdpa",
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> LoadedModel:
    """Load the checkpoint in `folder`. Towers of modalities not asked for stay empty.

    The weights are those of its files, unless `tensors` are given in place of them.

    Raises ModelUnsupported for an architecture without a family, or attention that the backends do
    not have.
    """
    family = family_for(folder)
    architecture = family.model_class()
    try:
        config = architecture.config_class.from_pretrained(folder)
        if modalities:
            family.trim_towers(config)
        else:
            family.drop_towers(config)
    except MISFITS as error:
        raise unfit(folder, f"transformers cannot read it ({type(error).__name__})") from error

    def report(factory: Any, args: Any, kwargs: Any) -> Any:
        return _ProgressBar(progress, *args, **kwargs)

    previous = transformers_logging.set_tqdm_hook(report)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would report a dropped tower's weights
    try:
        with _Unfilled():
            model, found = architecture.from_pretrained(
                folder if tensors is None else None,
                state_dict=None if tensors is None else dict(tensors),
                config=config,
                dtype=getattr(torch, dtype),
                device_map=None if device == "cpu" else device,
                attn_implementation="sdpa",
                local_files_only=True,
                key_mapping=family.key_mapping(),
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, in our own words
                output_loading_info=True,
                **family.model_settings(),
            )
    except MISFITS as error:
        raise unfit(folder, f"transformers cannot build it ({type(error).__name__})") from error
    finally:
        transformers_logging.set_tqdm_hook(previous)
        transformers_logging.set_verbosity(verbosity)
    for what, names in (("lack", found["missing_keys"]), ("misfit", found["mismatched_keys"])):
        if names:  # transformers would fill them with random numbers
            first = min(name if isinstance(name, str) else name[0] for name in names)
            reason = "has another shape there" if what == "misfit" else "is not there"
            raise unfit(folder, f"{first[:100]} {reason}, and {len(names) - 1} others")
    return as_loaded(family, model, vision_attention)


def unfit(folder: str, reason: str) -> ModelUnsupported:
    return ModelUnsupported(
        f"{folder}: its config.json is of another model than its weights: {reason}"
    )


def as_loaded(family: Family, model: Any, vision_attention: str = "sdpa") -> LoadedModel:
    """A model of transformers, made to attend through us.

    Raises ModelUnsupported for attention that the backends do not have.
    """
    if family.encoder_only:
        return as_encoder(family, model)
    family.attend_by(model, PAGED_ATTENTION, vision_attention)
    model.eval().requires_grad_(False)
    stack = family.decoder(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    return LoadedModel(
        family=family,
        model=model,
        stack=stack,
        shape=attention_shape(stack.config),
        # one that the model has no logit for can never come, and cannot be forbidden
        eos_ids=frozenset(token for token in end_tokens(family.folder) if token < vocabulary),
        dtype=model.dtype,
        vocabulary=vocabulary,
        logit_cap=getattr(model.config, "final_logit_softcapping", None),
        cross=family.cross_layers(model),
    )


def as_encoder(family: Family, model: Any) -> LoadedModel:
    """A model of transformers whose prompts attend to all of themselves, and which writes none."""
    model.set_attn_implementation(WHOLE_ATTENTION)
    model.eval().requires_grad_(False)
    stack: Any = family.decoder(model)
    config = stack.config
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    return LoadedModel(
        family=family,
        model=model,
        stack=stack,
        shape=AttentionShape(config.num_hidden_layers, heads, heads, head_dim, head_dim**-0.5),
        eos_ids=frozenset(),
        dtype=model.dtype,
        vocabulary=model.get_input_embeddings().weight.shape[0],
    )


def attention_shape(config: Any) -> AttentionShape:
    """Heads, sizes, windows and score cap of a decoder.

    Raises ModelUnsupported for a kind of layer that no backend has.
    """
    kinds = getattr(config, "layer_types", None) or []
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelUnsupported(f"layers of kind {', '.join(sorted(unknown))} are not supported")
    if getattr(config, "use_bidirectional_attention", False):
        raise ModelUnsupported("a decoder whose text attends both ways is not supported")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return AttentionShape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        scale=(getattr(config, "query_pre_attn_scalar", None) or head_dim) ** -0.5,
        windows=tuple(
            config.sliding_window if kind == "sliding_attention" else None for kind in kinds
        ),
        soft_cap=getattr(config, "attn_logit_softcapping", None),
    )


class _Unfilled(TorchFunctionMode):
    """Has a model made without numbers before its weights come.

    transformers makes it on the "meta" device and leaves nothing of what was there. torch computes
    ranges and random numbers there by its Python definitions, which bring 40 MB of symbolic
    mathematics, and a third of a second.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(function, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        elif function is torch.arange:
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


class _ProgressBar:
    """What transformers uses of a tqdm bar, reporting fractions to us."""

    def __init__(
        self, progress: Progress, iterable: Any = None, *, total: int | None = None, **_: Any
    ) -> None:
        self._progress = progress
        self._iterable = iterable
        self._total = total or (len(iterable) if hasattr(iterable, "__len__") else None)
        self._done = 0

    def __iter__(self) -> Any:
        for item in self._iterable:
            yield item
            self.update(1)

    def update(self, count: int = 1) -> None:
        before, self._done = self._done, self._done + count
        if self._total and before * 50 // self._total != self._done * 50 // self._total:
            self._progress("loading weights", self._done / self._total)

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def close(self) -> None:
        return None

    def set_postfix(self, *_: Any, **__: Any) -> None:
        return None
