"""Memory is measured before it is given away, and what cannot run is refused with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from appliance.config.compose import compose
from appliance.planning import check_device_keys, plan_recipe
from appliance.summary import render
from appliance.tasks.plan import table
from bench.reference import (
    TOLERANCE,
    Recorder,
    Reference,
    compare,
    greedy,
    picture,
    prompt_with_images,
)
from bench.reference import engine_options as tiny_options
from bench.stand_in.platforms import Recording, StandIn, cuda_path, standing_in
from bench.stand_in.torch_flashinfer import (
    BatchPrefillWithCausalBidirectionalRangesWrapper,
    single_prefill_with_kv_cache,
)
from engine import options as engine_options_module
from engine.attention.backend import AttentionShape
from engine.attention.flashinfer import check_supported
from engine.core import Engine
from engine.device.cards import Card
from engine.device.device import Graph
from engine.errors import ModelUnsupported
from engine.memory import plan as planning
from engine.memory.card_memory import measured_pages
from engine.memory.plan import Plan, PlanError, plan, size
from engine.models.registry import family_for
from engine.native.loading import variants
from engine.request import MediaItem, Request
from engine.running.exercise import largest_decode, largest_images, largest_prefill, pages_needed
from engine.running.media import Media
from engine.running.runner import Computed, Runner
from engine.scheduling.batch import Batch

Folder = Callable[[str], Path]
MIB, GIB = 1 << 20, 1 << 30
CARD = Card("a card", (9, 0), 80 * GIB, 79 * GIB)


class Counted(Recording):
    """A card of 200 MiB whose context and weights take 50; a step takes 20, a recording 5."""

    def __init__(self) -> None:
        super().__init__()
        self.free = 150 * MIB

    def capture(self, work: Callable[[], None], pool: Any) -> Graph:
        self.free -= 5 * MIB
        return super().capture(work, pool)

    def free_bytes(self) -> int:
        return self.free

    def total_bytes(self) -> int:
        return 200 * MIB

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        return 20 * MIB


def test_pages_are_what_is_left_of_the_fraction() -> None:
    room = {"total": 1000, "free": 900, "reserved": 100, "page_bytes": 10}
    assert measured_pages(fraction=1.0, **room) == 79  # page 0 is held too
    assert measured_pages(fraction=0.5, **room) == 29
    assert measured_pages(fraction=0.1, **room) < 0
    # what others take of the card counts as used
    assert measured_pages(total=1000, free=300, fraction=0.9, reserved=100, page_bytes=10) == 9


def test_the_engine_takes_what_it_measured_and_works(
    checkpoint: Folder, reference: Callable[[str], Reference]
) -> None:
    options = {"memory_fraction": 0.9, "measured": True, "graphs": True, "max_sequences": 4}
    engine = cuda_path(checkpoint("llama"), Counted(), **options, encoder_cache_bytes=3 * MIB)
    page_bytes = engine._runner.page_bytes
    assert page_bytes == 2 * 3 * 16 * 2 * 16 * 4  # both halves, layers, tokens, heads, float32
    recordings = (5 + 2 * 8) * MIB  # the one made, and what is known of the two others
    reserved = 20 * MIB + recordings + 3 * MIB
    left = int(0.9 * 200 * MIB) - (50 + 5) * MIB - reserved
    assert engine.stats().pages_total == left // page_bytes - 1
    recorder = Recorder(engine)
    request = Request("r", [5, 6, 7] * 9, greedy(4))
    recorder.run(request)
    assert compare(recorder, reference("llama"), [request]) < TOLERANCE


def test_pieces_of_prompts_are_recorded_once_for_the_measurement(checkpoint: Folder) -> None:
    options = {"memory_fraction": 0.9, "measured": True, "graphs": True, "max_sequences": 4}
    options |= {"prefill_graphs": 40, "encoder_cache_bytes": 3 * MIB}
    engine = cuda_path(checkpoint("llama"), Counted(), **options)
    pieces = 3 + 1  # one more than layers
    recordings = (5 + 2 * 8) * MIB + pieces * 5 * MIB  # of the largest
    recordings += pieces * 2 * MIB // 2  # and what is known of the two others
    reserved = 20 * MIB + recordings + 3 * MIB
    left = int(0.9 * 200 * MIB) - (50 + 5 + pieces * 5) * MIB - reserved
    assert engine.stats().pages_total == left // engine._runner.page_bytes - 1


def test_a_tower_is_recorded_once_for_the_measurement(checkpoint: Folder) -> None:
    told = {"memory_fraction": 0.9, "measured": True, "graphs": True, "max_sequences": 4}
    told |= {"encoder_cache_bytes": 3 * MIB, "modalities": ("image",), "max_tokens_per_step": 512}
    engine = cuda_path(checkpoint("llava"), Counted(), **told, tower_graphs=True)
    recordings = (5 + 2 * 8) * MIB + (5 + 2 * 8) * MIB  # of each kind one, and two others known
    reserved = 20 * MIB + recordings + 3 * MIB
    left = int(0.9 * 200 * MIB) - (50 + 2 * 5) * MIB - reserved
    assert engine.stats().pages_total == left // engine._runner.page_bytes - 1


def test_what_is_told_is_taken_without_measuring(checkpoint: Folder) -> None:
    assert cuda_path(checkpoint("llama"), Recording(), pages=33).stats().pages_total == 33


def test_a_card_too_small_is_refused_with_the_arithmetic(checkpoint: Folder) -> None:
    with pytest.raises(PlanError, match=r"a step 20.00 MiB.*room for \d+ pages.*model.max_len"):
        cuda_path(checkpoint("llama"), Counted(), measured=True, memory_fraction=0.35)


def test_running_out_of_memory_names_the_terms_and_the_keys(tmp_path: Path) -> None:
    class Full(Recording):
        def capture(self, work: Callable[[], None], pool: Any) -> Graph:
            raise torch.OutOfMemoryError("CUDA out of memory")

    folder = qwen2(tmp_path, hidden_size=128, num_attention_heads=2, num_key_value_heads=1)
    options = tiny_options(folder, dtype="bfloat16", graphs=True)
    with pytest.raises(PlanError) as raised:
        Engine(options, platform=Full())
    message = str(raised.value)
    assert "ran out of memory: weights" in message
    assert "KV cache" in message
    assert "engine.max_tokens_per_step" in message
    assert "\n" not in message


@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "llava"])
def test_the_largest_steps_are_within_the_options(family: str, checkpoint: Folder) -> None:
    options = tiny_options(checkpoint(family), max_tokens_per_step=100, max_sequences=7)
    family_ = family_for(checkpoint(family))
    prefill, decode = largest_prefill(options, family_), largest_decode(options, family_)
    assert (len(prefill.slices), prefill.tokens) == (7, 98)
    assert (len(decode.slices), decode.tokens) == (7, 7)
    assert max(prefill.page_indices.tolist()) == pages_needed(options)
    assert len(set(prefill.page_indices.tolist())) == pages_needed(options)
    if family != "llama":
        images = largest_images(options, family_)
        assert images[0].length <= options.max_len
        assert sum(image.length for image in images) <= max(100, images[0].length)


def test_no_step_has_more_rows_of_logits_than_were_tried_at_the_start(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch, reference: Callable[[str], Reference]
) -> None:
    """Log-probabilities of prompts come piece by piece."""
    tried: list[int] = []
    run = Runner.run

    def watched(runner: Runner, batch: Batch) -> Computed:
        computed = run(runner, batch)
        tried.append(len(computed.logits))
        return computed

    monkeypatch.setattr(Runner, "run", watched)
    monkeypatch.setattr(engine_options_module, "PROMPT_ROWS", 24)
    engine = cuda_path(checkpoint("llama"), max_tokens_per_step=100, max_sequences=4)
    assert tried == [24 + 4, 4, 1]
    tried.clear()
    recorder = Recorder(engine)
    prompts = [[(7 * i + n) % 300 + 20 for i in range(90)] for n in range(3)]
    requests = [
        Request(f"r{n}", prompt, greedy(3, prompt_logprobs=2)) for n, prompt in enumerate(prompts)
    ]
    recorder.run(*requests, Request("plain", prompts[0], greedy(9)))
    assert max(tried) <= 24 + 4
    assert sum(tried) >= 3 * 90
    first = {output.request_id: output for output in reversed(recorder.outputs)}
    assert all(len(first[f"r{n}"].prompt_logprobs or []) == 90 for n in range(3))
    assert compare(recorder, reference("llama"), requests) < TOLERANCE


def test_spans_are_tried_at_the_start(checkpoint: Folder) -> None:
    """So that their kernel is compiled, and measured, before the first image comes."""

    class Counted(BatchPrefillWithCausalBidirectionalRangesWrapper):
        def run(self, *parts, **windows):  # type: ignore[no-untyped-def]
            assert (parts[2][:, 1] > 0).all()
            runs.append(windows["causal_window_left"])
            return super().run(*parts, **windows)

    library = standing_in(BatchPrefillWithCausalBidirectionalRangesWrapper=Counted)
    for modalities, expected in ((("image",), [11, 11, -1, 11]), ((), [])):
        runs: list[int] = []
        cuda_path(checkpoint("gemma3"), StandIn(library), modalities=modalities)
        assert runs == expected


def test_types_and_heads_without_kernels_are_refused() -> None:
    shape = AttentionShape(layers=1, heads=4, kv_heads=2, head_dim=128, scale=1.0)
    check_supported(shape, torch.bfloat16)
    with pytest.raises(ModelUnsupported, match=r"not in float32.*model.dtype=bfloat16"):
        check_supported(shape, torch.float32)
    with pytest.raises(ModelUnsupported, match="heads of 64, 128, 256, this model's have 80"):
        check_supported(dataclasses.replace(shape, head_dim=80), torch.bfloat16)


@pytest.fixture
def carded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "card", lambda: CARD)


def qwen2(tmp_path: Path, **shape: int) -> Path:
    """A Qwen2 of one layer, its weights whatever memory held."""
    config = transformers.Qwen2Config(
        num_hidden_layers=1, vocab_size=1024, max_position_embeddings=4096, **shape
    )
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config)
    model.to_empty(device="cpu").to(torch.bfloat16).save_pretrained(tmp_path / "qwen2")
    return tmp_path / "qwen2"


def seven(tmp_path: Path) -> Path:
    """One layer of the 7B's shape, narrower."""
    return qwen2(
        tmp_path,
        hidden_size=896,
        intermediate_size=4736,
        num_attention_heads=7,
        num_key_value_heads=1,
    )


def test_a_card_is_planned_to_its_fraction(carded: None, tmp_path: Path) -> None:
    folder = seven(tmp_path)

    def planned_with(**changes: Any) -> Plan:
        base = {
            "dtype": "bfloat16",
            "device": "cuda",
            "max_len": 0,
            "max_tokens_per_step": 8192,
            "max_sequences": 256,
            "encoder_cache_bytes": 0,
            "modalities": (),
            "graphs": True,
            "memory_fraction": 0.9,
        }
        return plan(tiny_options(folder, **(base | changes)))

    planned = planned_with()
    page = planned.kv_bytes_per_token * 16
    assert planned.available_bytes == int(0.9 * CARD.total_bytes)
    assert 0 <= planned.available_bytes - planned.total_bytes < page
    assert planned_with(memory_fraction=1.0).available_bytes == CARD.free_bytes
    half = planned_with(kv_dtype="float8_e4m3fn")
    assert half.kv_bytes_per_token * 2 == planned.kv_bytes_per_token
    assert half.tokens > 1.99 * planned.tokens
    assert planned_with(graphs=False).tokens > planned.tokens
    pieces = planned.kv_bytes - planned_with(prefill_graphs=512).kv_bytes
    # two pieces of eight sizes, what they hand on, and what the largest computes in
    passed = 512 * (896 + 2 * 8 * 128 + 2 * 896 + 3 * 4736) * 2 + 512 * 2 * 4 * 128
    assert abs(pieces - 2 * 8 * MIB // 2 - passed) < page
    with pytest.raises(PlanError, match="not in float32"):
        planned_with(dtype="float32")
    with pytest.raises(PlanError, match="are available"):
        planned_with(memory_fraction=0.01)


def test_eight_bits_reach_the_engine_and_are_said(carded: None, tmp_path: Path) -> None:
    folder = seven(tmp_path)
    composed = compose([f"model.path={folder}", "engine=cuda", "media.image.limit=0"])
    whole = plan_recipe(composed.config, folder)
    assert whole.options.quantization is None
    composed.config.model.quantization = "fp8"
    small = plan_recipe(composed.config, folder)
    assert small.options.quantization == "fp8"
    assert small.weights_bytes < whole.weights_bytes
    assert small.tokens > whole.tokens
    others = f"{small.parameters:,} parameters, those of layers in fp8, others x 2 bytes"
    assert others in table(small)
    assert f"{whole.parameters:,} parameters x 2 bytes" in table(whole)
    assert f"bfloat16, layers in fp8, {size(small.weights_bytes)}" in render(composed, small)
    assert "fp8" not in render(composed, whole)


def test_the_group_engine_cuda_reaches_the_engine(carded: None, tmp_path: Path) -> None:
    folder = seven(tmp_path)
    config = compose([f"model.path={folder}", "engine=cuda", "media.image.limit=0"]).config
    options = plan_recipe(config, folder).resolved
    assert (options.device, options.dtype, options.graphs) == ("cuda", "bfloat16", True)
    assert (options.measured, options.memory_fraction) == (True, 0.9)
    assert options.pages > 0
    told = ["engine.kv_cache_gb=1", "engine.kv_dtype=fp8", "engine.vision_attention=auto"]
    told.append("engine.vision_attention_from=99")
    config = compose([f"model.path={folder}", "engine=cuda", "media.image.limit=0", *told]).config
    options = plan_recipe(config, folder).resolved
    assert not options.measured
    assert (options.kv_dtype, options.vision_attention) == ("float8_e4m3fn", "auto")
    assert options.vision_attention_from == 99
    assert options.prefill_attention == "auto"


@pytest.mark.parametrize(
    "key",
    [
        "kv_dtype=fp8",
        "graphs=true",
        "gpu_memory_fraction=0.5",
        "vision_attention=flashinfer",
        "vision_attention=auto",
        "prefill_attention=fa3",
        "prefill_graphs=64",
    ],
)
def test_what_only_a_card_does_is_refused_on_the_cpu(key: str) -> None:
    config = compose(["recipe=smollm2", f"engine.{key}"]).config
    with pytest.raises(PlanError, match=f"engine.{key.split('=')[0]}.* needs engine=cuda"):
        check_device_keys(config.engine)
    check_device_keys(compose(["recipe=smollm2"]).config.engine)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("engine.fuse=false", "they are not fused"),
        ("parallelism.tensor=2", "several processes share each layer"),
        ("model.dtype=float16", "there are no kernels of float16"),
    ],
)
def test_kernels_by_name_are_of_fused_layers_in_one_process(
    key: str, reason: str, tmp_path: Path
) -> None:
    folder, variant = seven(tmp_path), variants()[0]
    told = [f"model.path={folder}", "media.image.limit=0", f"engine.native={variant}"]
    plan_recipe(compose(told).config, folder)
    with pytest.raises(PlanError, match=f"engine.native={variant}: {reason}: set it to auto"):
        plan_recipe(compose([*told, key]).config, folder)


def test_a_card_is_not_given_what_is_meant_for_a_cpu() -> None:
    with pytest.raises(PlanError, match=r"engine\.native=avx2 is for engine=cpu"):
        check_device_keys(
            compose(["recipe=smollm2", "engine=cuda", "engine.native=avx2"]).config.engine
        )
    with pytest.raises(PlanError, match="say engine=cuda"):
        check_device_keys(compose(["recipe=smollm2", "engine.device=cuda"]).config.engine)
    for told in (["engine=cuda"], ["engine=cuda", "engine.graphs=false"]):
        check_device_keys(compose(["recipe=smollm2", *told]).config.engine)
    check_device_keys(
        compose(["recipe=smollm2", "engine.device=cuda", "engine.graphs=true"]).config.engine
    )


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3"])
def test_a_tower_attends_with_padded_heads_as_without(
    family: str, checkpoint: Folder, reference: Callable[[str], Reference]
) -> None:
    calls: list[int] = []

    def watched(q: torch.Tensor, *rest: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append(q.shape[-1])
        return single_prefill_with_kv_cache(q, *rest, **options)  # type: ignore[arg-type]

    library = standing_in(single_prefill_with_kv_cache=watched)
    folder = checkpoint(family)
    tokens, media = prompt_with_images(
        folder, [[5, 6], picture(60, 90, 1), [7], picture(120, 60, 2), [8]]
    )
    request = Request("r", tokens, greedy(2), media)
    recorder = Recorder(cuda_path(folder, StandIn(library), vision_attention="flashinfer"))
    recorder.run(request)
    assert set(calls) == {64}  # heads of 16, padded
    assert compare(recorder, reference(family), [request]) < TOLERANCE

    def unscaled(*parts: torch.Tensor, sm_scale: float, **options: Any) -> torch.Tensor:
        return single_prefill_with_kv_cache(*parts, sm_scale=64**-0.5, **options)

    library = standing_in(single_prefill_with_kv_cache=unscaled)
    recorder = Recorder(cuda_path(folder, StandIn(library), vision_attention="flashinfer"))
    recorder.run(request)
    assert compare(recorder, reference(family), [request]) > 10 * TOLERANCE  # control


def test_large_pictures_can_attend_otherwise_than_small_ones(
    checkpoint: Folder, reference: Callable[[str], Reference]
) -> None:
    folder = checkpoint("qwen2_vl")
    tokens, media = prompt_with_images(
        folder, [[5, 6], picture(60, 90, 1), [7], picture(200, 120, 2), [8]]
    )
    small, large = (4 * item.length for item in media)  # patches
    request = Request("r", tokens, greedy(2), media)
    for least, expected in (
        (1, {small, large}),
        (small + 1, {large}),
        (large, {large}),
        (large + 1, set()),
    ):
        lengths: set[int] = set()

        def watched(q: torch.Tensor, *rest: torch.Tensor, **options: object) -> torch.Tensor:
            lengths.add(len(q))  # noqa: B023 - called before the next turn
            return single_prefill_with_kv_cache(q, *rest, **options)  # type: ignore[arg-type]

        library = standing_in(single_prefill_with_kv_cache=watched)
        engine = cuda_path(
            folder, StandIn(library), vision_attention="auto", vision_attention_from=least
        )
        lengths.clear()  # of what was tried at the start
        recorder = Recorder(engine)
        recorder.run(request)
        assert lengths == expected
        assert compare(recorder, reference("qwen2_vl"), [request]) < TOLERANCE


def test_the_largest_clip_is_encoded_while_memory_is_measured(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = Media.encode

    def watched(media: Media, items: list[MediaItem]) -> list[torch.Tensor]:
        seen.extend(item.length for item in items if item.modality == "video")
        return encode(media, items)

    monkeypatch.setattr(Media, "encode", watched)
    told = {"measured": True, "memory_fraction": 0.9, "max_len": 1000}
    cuda_path(checkpoint("qwen2_vl"), Counted(), **told, modalities=("image", "video"))
    _, *largest = seen  # the first one compiles
    assert len(largest) == 1
    assert 900 < largest[0] <= 1000  # not the 64 tokens of the largest image
    seen.clear()
    told |= {"max_len": 60, "max_tokens_per_step": 200}
    cuda_path(checkpoint("qwen2_vl"), Counted(), **told, modalities=("image", "video"))
    _, *largest = seen
    assert all(40 < length <= 60 for length in largest)  # no longer than a prompt
    assert len(largest) == 200 // largest[0]  # as many as a step may have


def test_the_largest_sound_is_heard_while_memory_is_measured(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    encode = Media.encode

    def watched(media: Media, items: list[MediaItem]) -> list[torch.Tensor]:
        heard.extend(item.length for item in items if item.modality == "audio")
        return encode(media, items)

    monkeypatch.setattr(Media, "encode", watched)
    cuda_path(checkpoint("ultravox"), Counted(), measured=True, memory_fraction=0.9, max_len=400)
    assert len(heard) == 2  # a second to compile what is needed, then the longest
    assert 300 < heard[1] <= 400


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3", "ultravox"])
def test_towers_run_before_the_engine_is_ready(
    family: str, checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where memory for keys is told and nothing measured: what they compile takes minutes."""
    encoded: list[str] = []
    encode = Media.encode

    def watched(media: Media, items: list[MediaItem]) -> list[torch.Tensor]:
        encoded.extend(item.modality for item in items)
        return encode(media, items)

    monkeypatch.setattr(Media, "encode", watched)
    modalities = family_for(checkpoint(family)).available
    cuda_path(checkpoint(family), Recording(), pages=99, modalities=modalities, max_len=400)
    assert encoded == list(modalities)


def test_the_picture_tried_at_the_start_is_one_that_large_pictures_attend_like(
    checkpoint: Folder,
) -> None:
    lengths: list[int] = []

    def watched(q: torch.Tensor, *rest: torch.Tensor, **options: object) -> torch.Tensor:
        lengths.append(len(q))
        return single_prefill_with_kv_cache(q, *rest, **options)  # type: ignore[arg-type]

    library = standing_in(single_prefill_with_kv_cache=watched)
    told: dict[str, object] = {"vision_attention": "auto", "vision_attention_from": 200}
    cuda_path(checkpoint("qwen2_vl"), StandIn(library), modalities=("image",), **told)
    assert lengths
    assert min(lengths) >= 200


@pytest.mark.parametrize("measured", [False, True])
def test_a_prompt_too_short_for_any_picture_does_not_stop_the_start(
    measured: bool, checkpoint: Folder
) -> None:
    told = {"max_len": 3, "modalities": ("image",), "measured": measured, "memory_fraction": 0.9}
    assert cuda_path(checkpoint("llava"), Counted(), **told).stats().pages_total
