"""How far back each layer of a decoder sees, by its config.json alone."""

from __future__ import annotations

from typing import Any

GEMMA_PATTERN, GEMMA_WINDOW = 6, 4096  # defaults of transformers' Gemma3TextConfig
QWEN_WINDOW = 4096  # of its Qwen2Config, Qwen3Config and Qwen2VLTextConfig
QWEN_FIRST = {"qwen2": 28, "qwen3": 28}  # layer from which there are windows; Qwen2-VL's is 80
QWEN2_VL_FIRST = 80


def layer_windows(text: dict[str, Any]) -> tuple[int | None, ...]:
    """The window of each layer, None seeing everything; empty where no layer has one.

    `text` is `Family.text_config()`. The rules are those of transformers' configurations, where
    a file says nothing of `layer_types`.
    """
    kind, layers = str(text.get("model_type", "")), int(text["num_hidden_layers"])
    kinds = text.get("layer_types")
    if kind.startswith("gemma3"):
        window = text.get("sliding_window", GEMMA_WINDOW)
        pattern = text.get("sliding_window_pattern") or GEMMA_PATTERN
        sliding = [bool((layer + 1) % pattern) for layer in range(layers)]
    elif kind.startswith(("qwen2", "qwen3")):
        used = text.get("use_sliding_window")
        window = text.get("sliding_window", QWEN_WINDOW) if used else None
        first = text.get("max_window_layers", QWEN_FIRST.get(kind, QWEN2_VL_FIRST))
        sliding = [window is not None and layer >= first for layer in range(layers)]
    else:  # Llama's configuration has no kinds of layers of itself
        window, sliding = text.get("sliding_window"), [False] * layers
    if kinds is not None:
        sliding = [one == "sliding_attention" for one in kinds]
    if window is None or not any(sliding):
        return ()
    return tuple(window if slides else None for slides in sliding)
