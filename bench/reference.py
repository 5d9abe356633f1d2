"""An engine whose every row of logits is kept, and transformers' own forward to hold it against."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from PIL import Image

from engine.core import Engine
from engine.models.item_tensors import tensors_of
from engine.models.registry import family_for
from engine.options import EngineOptions
from engine.request import MediaItem, Output, Request, SamplingOptions
from engine.running.runner import Computed
from engine.scheduling.batch import Batch

TOLERANCE = 1e-4  # float32 logits


def engine_options(folder: Path, **changes: object) -> EngineOptions:
    states = family_for(folder).state_sizes()
    settings: dict[str, object] = {
        "model_path": str(folder),
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "page_size": 16,
        "pages": 64,
        "max_len": 512,
        "max_tokens_per_step": 64,
        "max_sequences": 16,
        "prefix_cache": True,
        "encoder_cache_bytes": 1 << 20,
        "modalities": family_for(folder).modalities,
        "state_pages": 0 if states is None else 16 * states.pages,
    }
    return EngineOptions(**(settings | changes))  # type: ignore[arg-type]


def greedy(max_tokens: int, **changes: object) -> SamplingOptions:
    options: dict[str, object] = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    return SamplingOptions(**(options | changes))  # type: ignore[arg-type]


@dataclass
class Recorder:
    """Runs an engine and keeps logits by (request, answer, position)."""

    engine: Engine
    rows: dict[tuple[str, int, int], torch.Tensor] = field(default_factory=dict)
    tokens: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        run = self.engine._runner.run

        def recorded(batch: Batch) -> Computed:
            computed = run(batch)
            self.batches.append(batch)
            places = [
                (item.sequence.request.id, item.sequence.index, position)
                for item in batch.slices
                for position in range(item.start, item.end)
            ]
            for row, place in zip(computed.logits, batch.logit_rows.tolist(), strict=True):
                self.rows[places[place]] = row.clone()
            return computed

        self.engine._runner.run = recorded  # type: ignore[method-assign]

    def step(self) -> list[Output]:
        outputs = self.engine.step()
        for output in outputs:
            self.tokens.setdefault((output.request_id, output.index), []).extend(output.token_ids)
        self.outputs += outputs
        return outputs

    def finish(self) -> None:
        steps = 0
        while self.engine.has_work():
            self.step()
            steps += 1
            assert steps < 2000, "the engine does not come to an end"

    def run(self, *requests: Request) -> None:
        for request in requests:
            self.engine.add(request)
        self.finish()


class Reference:
    """transformers' model of the same checkpoint, one sequence at a time, without any cache."""

    def __init__(self, folder: Path) -> None:
        self.family = family_for(folder)
        architecture = getattr(transformers, self.family.config["architectures"][0])
        self.model = architecture.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def logits(self, tokens: list[int], media: Sequence[MediaItem] = ()) -> torch.Tensor:
        """`[tokens, vocabulary]`"""
        return self.model(**self._inputs(tokens, media)).logits[0]

    @torch.no_grad()
    def hidden_states(self, tokens: list[int], media: Sequence[MediaItem] = ()) -> torch.Tensor:
        """The last layer's, normed: `[tokens, hidden]`."""
        output = self.model(**self._inputs(tokens, media), output_hidden_states=True)
        return output.hidden_states[-1][0]

    @torch.no_grad()
    def generate(self, prompt: list[int], count: int, media: Sequence[MediaItem] = ()) -> list[int]:
        output = self.model.generate(
            **self._inputs(prompt, media),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return output[0, len(prompt) :].tolist()

    def _inputs(self, tokens: list[int], media: Sequence[MediaItem]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([tokens])
        inputs: dict[str, torch.Tensor] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        shown = [self.family.tower_inputs(item) for item in media]
        for name in sorted({name for one in shown for name in one}):
            inputs[name] = torch.cat([one[name] for one in shown if name in one])
        config = self.model.config
        if self.family.state_sizes() is not None:
            del inputs["attention_mask"]
            inputs["decoder_input_ids"] = inputs.pop("input_ids")
        if self.family.both_ways:
            inputs["token_type_ids"] = (ids == config.image_token_id).int()
        if any(name.endswith("grid_thw") for name in inputs):
            images, videos = ids == config.image_token_id, ids == config.video_token_id
            inputs["mm_token_type_ids"] = images.int() + 2 * videos.int()
        return inputs


def compare(recorder: Recorder, reference: Reference, requests: list[Request]) -> float:
    """Largest difference between recorded logits and the reference's, over every recorded row."""
    return max(differences(recorder, reference, requests), default=0.0)


def differences(
    recorder: Recorder, reference: Reference, requests: list[Request]
) -> Iterator[float]:
    """The largest difference of each recorded row's logits to the reference's."""
    for request in requests:
        for index in range(request.n):
            tokens = request.prompt_ids + recorder.tokens[request.id, index]
            expected = reference.logits(tokens[:-1], request.media)
            found = 0
            for (name, answer, position), row in recorder.rows.items():
                if (name, answer) == (request.id, index) and position < len(expected):
                    found += 1  # behind the last token there may be rows of drafts
                    yield (row - expected[position]).abs().max().item()
            assert found >= len(recorder.tokens[request.id, index])


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Noise over a gradient: no two seeds look alike to a model."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGB")


def prompt_with_images(
    folder: Path, parts: list[list[int] | Image.Image]
) -> tuple[list[int], list[MediaItem]]:
    """Token ids and media items of text ids and pictures in order."""
    family = family_for(folder)
    placeholder = transformers.AutoConfig.from_pretrained(folder).image_token_id
    tokens: list[int] = []
    media: list[MediaItem] = []
    for part in parts:
        if isinstance(part, list):
            tokens += part
            continue
        length = family.image_tokens(*part.size)
        tensors = tensors_of(family.preprocess_image(part))
        digest = hashlib.sha256(repr(part.size).encode() + part.tobytes()).digest()
        media.append(MediaItem("image", digest, len(tokens), length, tensors))
        tokens += [placeholder] * length
    return tokens, media
