"""Request fields that are not built or change nothing; the others are on the request models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# Fields that would change the answer and are not built, with the values that ask for nothing: also
# what programs send that always write every field, an empty text where there is none.
UNBUILT: Final[dict[str, tuple[Any, ...]]] = {
    "allowed_token_ids": ([],),
    "audio": ({},),
    "bad_words": ([],),
    "detokenize": (True,),
    "documents": ([],),
    "functions": ([],),
    "function_call": ("none", "auto", "", {}),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora_path": ("",),
    "media_io_kwargs": ({},),
    "min_new_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "moderation": ({},),
    "prediction": ({},),
    "prompt_embeds": ("", []),
    "prompt_logprobs": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "stop_regex": ([], ""),
    "structural_tag": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}

UNBUILT_CHAT: Final[dict[str, tuple[Any, ...]]] = {
    **UNBUILT,
    "add_special_tokens": (False,),
    "best_of": (1,),
    "echo": (False,),
}
UNBUILT_COMPLETION: Final[dict[str, tuple[Any, ...]]] = {
    **UNBUILT,
    "add_special_tokens": (True,),
    "include_reasoning": (True, False),
    "parallel_tool_calls": (True, False),
    "reasoning": ({}, {"effort": "none"}, {"enabled": False}),
    "reasoning_effort": ("none", ""),
    "suffix": ("",),
    "thinking_token_budget": (),
    "thinking": ({}, {"type": "disabled"}, False),
    "tool_choice": ("none", "auto", "", {"type": "none"}, {"type": "auto"}),
    "tools": ([],),
    "top_logprobs": (0,),
}

UNBUILT_EMBEDDING: Final[dict[str, tuple[Any, ...]]] = {
    "add_special_tokens": (True,),
    "chat_template": ("",),
    "embed_dtype": ("float32", "float"),
    "endianness": ("little", "native"),
    "lora_path": ("",),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "use_activation": (),
}

UNBUILT_SCORE: Final[dict[str, tuple[Any, ...]]] = {
    "add_special_tokens": (True,),
    "chat_template": ("",),
    "instruction": ("",),
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (0,),
    "mm_processor_kwargs": ({},),
    "rank_fields": ([], ["text"]),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "use_activation": (True,),
}

# Fields that are about the caller, accounting or speed, never about the answer.
HINTS: Final[frozenset[str]] = frozenset(
    {
        "extra_headers",
        "guided_decoding_backend",  # how something is done that is asked for by other fields
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "request_id",
        "rid",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)


# Lists of what may be called, and the field by which calls are forbidden: then no call can come.
CALLS: Final[dict[str, str]] = {"tools": "tool_choice", "functions": "function_call"}
FORBIDDEN: Final[tuple[Any, ...]] = ("none", {"type": "none"})


def asks_for_nothing(name: str, body: Mapping[str, Any], neutral: tuple[Any, ...]) -> bool:
    """Whether a field that is not built changes nothing in this body."""
    value = body[name]
    if name in CALLS and isinstance(value, list) and harmless(body.get(CALLS[name]), FORBIDDEN):
        return True
    return harmless(value, neutral)


def harmless(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `value` is one of the `neutral` ones, with booleans and numbers told apart.

    What is null in an object is not there.
    """
    if isinstance(value, dict):
        value = {name: inner for name, inner in value.items() if inner is not None}
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )
