"""transformers' own model of the checkpoint: the answers that the served ones are held against."""

from __future__ import annotations

import io
from pathlib import Path

import av
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bench.exam.questions import Item
from tools.demo import batches, encoding
from tools.demo.checkpoint import FRAME_PIXELS, MERGE
from tools.demo.exam import Chat
from tools.demo.generator import FRAMES
from tools.demo.palette import Colour

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
Tensors = dict[str, torch.Tensor]


class Reference:
    """Answers a chat's first question, greedily and in float32."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self._model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self._model.eval()

    @torch.inference_mode()
    def answer(self, chat: Chat, background: Colour, max_tokens: int) -> str:
        """Return the answer; transparent pictures are laid on the background first."""
        inputs = self.inputs(chat, background)
        length = inputs["input_ids"].shape[1]
        tokens = self._model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        return str(self._tokenizer.decode(tokens[0, length:], skip_special_tokens=True))

    def inputs(self, chat: Chat, background: Colour) -> Tensors:
        """Return the prompt as tensors, each item's pad token repeated as often as it needs."""
        told = {"type": "text", "text": chat.turns[0].question}
        parts = [{"type": item.modality} for item in chat.items]
        content = [told, *parts] if chat.text_first else [*parts, told]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        shown: dict[str, list[torch.Tensor]] = {}
        for item in chat.items:
            pixels, grid = self._seen(item, background)
            shown.setdefault(PIXELS[item.modality], []).append(pixels)
            shown.setdefault(f"{item.modality}_grid_thw", []).append(grid)
            tokens = int(grid.prod()) // MERGE**2
            text = text.replace(f"<|{item.modality}_pad|>", f"<|{item.modality}|>" * tokens, 1)
        for modality in PIXELS:  # only now, or a second item would be put among the first's
            text = text.replace(f"<|{modality}|>", f"<|{modality}_pad|>")
        ids = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        config = self._model.config
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": kinds,
        }
        return inputs | {name: torch.cat(tensors) for name, tensors in shown.items()}

    def _seen(self, item: Item, background: Colour) -> tuple[torch.Tensor, torch.Tensor]:
        if item.modality == "video":
            # its own video processor needs torchvision; the patches are those of its image one
            patches, grid = encoding.patches_of(sampled(item.data), FRAME_PIXELS)
            return batches.normalized(patches), torch.tensor([grid])
        seen = self._pictures(opaque(item.data, background), return_tensors="pt")
        return seen["pixel_values"], seen["image_grid_thw"]


def opaque(data: bytes, background: Colour) -> Image.Image:
    """Return a picture in RGB, what is transparent in it laid on the background."""
    with Image.open(io.BytesIO(data)) as picture:
        if picture.mode != "RGBA":
            return picture.convert("RGB")
        behind = Image.new("RGBA", picture.size, (*background, 255))
        behind.alpha_composite(picture)
        return behind.convert("RGB")


def sampled(data: bytes) -> list[Image.Image]:
    """Return the frames that Qwen2-VL's video processor takes of a file with `num_frames`."""
    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[step * len(frames) // FRAMES] for step in range(FRAMES)]
