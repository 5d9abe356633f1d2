"""Request fields that are not built or change nothing; the others are on the request models."""

from __future__ import annotations

from typing import Any, Final

# Fields that would change the answer and are not built, with the values that change nothing.
UNBUILT: Final[dict[str, tuple[Any, ...]]] = {
    "add_special_tokens": (),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "detokenize": (True,),
    "documents": ([],),
    "ebnf": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_reasoning": (True,),
    "json_schema": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora_path": (),
    "media_io_kwargs": ({},),
    "min_new_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "reasoning": (),
    "reasoning_effort": (),
    "regex": (),
    "response_format": ({"type": "text"},),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "stop_regex": ([],),
    "structural_tag": (),
    "structured_outputs": ({},),
    "thinking": (),
    "thinking_token_budget": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}

UNBUILT_CHAT: Final[dict[str, tuple[Any, ...]]] = {**UNBUILT, "best_of": (1,), "echo": (False,)}
UNBUILT_COMPLETION: Final[dict[str, tuple[Any, ...]]] = {
    **UNBUILT,
    "add_special_tokens": (True,),
    "suffix": ("",),
}

# Fields that are about the caller, accounting or speed, never about the answer.
HINTS: Final[frozenset[str]] = frozenset(
    {
        "extra_headers",
        "metadata",
        "parallel_tool_calls",
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


def harmless(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether `value` is one of the `neutral` ones, with booleans and numbers told apart."""
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )
