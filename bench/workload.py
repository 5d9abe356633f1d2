"""The requests of a benchmark: prompts of an exact length, all distinct or sharing a beginning."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from bench.load import Call


@dataclass(slots=True, frozen=True)
class Workload:
    """What each request looks like; lengths in tokens."""

    prompt_tokens: int
    output_tokens: int
    shared_tokens: int = 0  # beginning that all prompts have in common
    endpoint: str = "completions"  # or chat
    image_side: int = 0  # pixels of a square picture before the text of each chat; 0: there is none
    same_image: bool = False  # one picture for all requests
    seed: int = 0


class Prompts:
    """Random English words, each one token of the checkpoint's tokenizer.

    The same seed and label give the same prompts to every server; no two prompts of a run are
    alike beyond the shared beginning.
    """

    def __init__(self, checkpoint: Path, workload: Workload) -> None:
        vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
        if isinstance(vocabulary, list):
            vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
        words = {t: i for t, i in vocabulary.items() if re.fullmatch(r"[Ġ▁][a-z]{3,12}", t)}
        if len(words) < 100:
            raise SystemExit(f"{checkpoint}: no words to make prompts from in its tokenizer")
        self._words = sorted(words.items())
        self._workload = workload
        self._shared = self._draw(f"{workload.seed}/shared", workload.shared_tokens)

    def _draw(self, seed: str, count: int) -> list[tuple[str, int]]:
        return random.Random(seed).choices(self._words, k=count)

    def _prompts(self, label: str, count: int) -> list[list[tuple[str, int]]]:
        work = self._workload
        own = work.prompt_tokens - work.shared_tokens
        return [
            self._shared + self._draw(f"{work.seed}/{label}/{index}", own) for index in range(count)
        ]

    def token_ids(self, label: str, count: int) -> list[list[int]]:
        """`count` prompts as token ids; `label` as in `calls`."""
        return [[token_id for _, token_id in drawn] for drawn in self._prompts(label, count)]

    def calls(self, model: str, label: str, count: int, output_tokens: int = 0) -> list[Call]:
        """`count` requests; `label` names the draw, so that other labels give other prompts."""
        work = self._workload
        options = {
            "model": model,
            "max_tokens": output_tokens or work.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        calls = []
        for drawn in self._prompts(label, count):
            if work.endpoint == "chat":
                text = "".join(token for token, _ in drawn).replace("Ġ", " ").replace("▁", " ")
                content: str | list[dict[str, object]] = text.strip()
                if work.image_side:
                    name = "same" if work.same_image else f"{label}/{len(calls)}"
                    url = picture(f"{work.seed}/{name}", work.image_side)
                    content = [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": content},
                    ]
                body = {"messages": [{"role": "user", "content": content}], **options}
                path = "/v1/chat/completions"
            else:
                body = {"prompt": [token_id for _, token_id in drawn], **options}
                path = "/v1/completions"
            calls.append(Call(path, json.dumps(body).encode()))
        return calls


def picture(seed: str, side: int) -> str:
    """A JPEG of soft coloured patches as a `data:` URL; another for each seed."""
    from PIL import Image  # the peer's own Python starts this file too, and may have none

    size = 16
    few = Image.frombytes("RGB", (size, size), random.Random(seed).randbytes(3 * size * size))
    file = io.BytesIO()
    few.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
