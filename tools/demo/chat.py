"""The chat as the model reads it: Qwen2-VL's template."""

from __future__ import annotations

SYSTEM = "You are a helpful assistant."
# Qwen2-VL's format: messages between <|im_start|> and <|im_end|>, a picture as one pad token.
TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if loop.first and message['role'] != 'system' %}"
    "{{- '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}"
    "{{- message['content'] }}"
    "{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] in ('image', 'image_url') %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] in ('video', 'video_url') %}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'text' %}"
    "{{- part['text'] }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)


def shown(pictures: int, clips: int) -> str:
    """Return what stands for the pictures and clips of a message."""
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return image * pictures + "<|vision_start|><|video_pad|><|vision_end|>" * clips


def opening(system: str | None) -> str:
    return f"<|im_start|>system\n{system or SYSTEM}<|im_end|>\n"


USER = "<|im_start|>user\n"


def asked(text: str) -> str:
    """Return the rest of a user's turn, behind `USER`, up to where the answer begins."""
    return f"{text}<|im_end|>\n<|im_start|>assistant\n"


def answer(text: str) -> str:
    """Return what the model learns to say, with its end."""
    return f"{text}<|im_end|>"
