"""Short batches in recorded pieces: which are replayed, what rows too many may touch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from appliance.config.compose import compose
from appliance.planning import engine_options as planned_options
from bench.reference import (
    TOLERANCE,
    Recorder,
    Reference,
    compare,
    greedy,
    picture,
    prompt_with_images,
)
from bench.stand_in.platforms import Recording, cuda_path
from engine.attention.flashinfer import FlashInferAttention
from engine.core import Engine
from engine.device.device import Graph
from engine.errors import EngineError, ModelUnsupported
from engine.layers.decoder import DecoderInput, LayerFeature
from engine.layers.fuse import FusedDecoder
from engine.layers.kernels import TorchKernels
from engine.layers.linear import Linear, PlainLinear
from engine.memory.card_memory import prefill_sizes
from engine.memory.plan import PlanError
from engine.request import Request
from engine.running.prefill_graphs import PrefillGraphs
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]
LIMIT = 40


def recorded(folder: Path, platform: Recording | None = None, **changes: object) -> Engine:
    told: dict[str, object] = {"graphs": True, "prefill_graphs": LIMIT}
    return cuda_path(folder, platform or Recording(), **(told | changes))


def graphs_of(engine: Engine) -> PrefillGraphs:
    graphs = engine._runner._prefill_graphs
    assert graphs is not None
    return graphs


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """What batches took that were not decoded by a whole recording; None: no recording."""
    found: list[int | None] = []
    call = PrefillGraphs.__call__

    def watched(graphs: PrefillGraphs, batch: DecoderInput) -> torch.Tensor:
        found.append(graphs.size_for(batch))
        return call(graphs, batch)

    monkeypatch.setattr(PrefillGraphs, "__call__", watched)
    return found


def test_sizes() -> None:
    assert prefill_sizes(0) == []
    assert prefill_sizes(1) == [1]
    assert prefill_sizes(16) == [16]
    assert prefill_sizes(40) == [16, 32, 40]
    assert prefill_sizes(512) == [16, 32, 64, 128, 192, 256, 384, 512]
    assert prefill_sizes(150) == [16, 32, 64, 128, 150]


def test_a_batch_takes_the_next_larger_size_up_to_the_limit(
    checkpoint: Folder, reference: Model, sizes: list[int | None]
) -> None:
    platform = Recording()
    engine = recorded(checkpoint("llama"), platform, prefix_cache=False)
    assert graphs_of(engine).sizes == [16, 32, 40]
    recorder = Recorder(engine)
    pieces = engine._runner.loaded.shape.layers + 1
    requests = []
    for count, expected in ((1, 16), (16, 16), (17, 32), (40, 40), (41, None)):
        sizes.clear()
        platform.log.clear()
        requests.append(Request(f"r{count}", words(count, count), greedy(1)))
        recorder.run(requests[-1])
        replays = [line for line in platform.log if line.startswith("replay")]
        if count == 1:  # decoded as a whole: one token, whose logits are wanted
            assert (sizes, len(replays)) == ([], 1)
            continue
        assert sizes == [expected]
        assert len(replays) == (0 if expected is None else pieces)
        assert len(set(replays)) == len(replays)
    assert compare(recorder, reference("llama"), requests) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "qwen2_vl", "gemma3"])
def test_prompts_beside_decoding_sequences_are_replayed(
    family: str, checkpoint: Folder, reference: Model, sizes: list[int | None]
) -> None:
    folder = checkpoint(family)
    recorder = Recorder(recorded(folder, max_tokens_per_step=64, prefill_graphs=64))
    requests = []
    for index in range(4):
        tokens, media = words(30 + 9 * index, index), []
        if family != "llama":
            parts = [words(3, index), picture(60, 90, index), words(9, index)]
            tokens, media = prompt_with_images(folder, parts)
        requests.append(Request(f"r{index}", tokens, greedy(8), media))
    sizes.clear()
    for request in requests:
        recorder.engine.add(request)
        recorder.step()
    recorder.finish()
    mixed = [
        batch
        for batch in recorder.batches
        if {1} < {item.count for item in batch.slices} and len(batch.slices) > 1
    ]
    assert mixed
    assert None not in sizes
    assert len(sizes) >= len(mixed)
    assert compare(recorder, reference(family), requests) < TOLERANCE


def test_a_preempted_sequence_comes_back_in_pieces(
    checkpoint: Folder, reference: Model, sizes: list[int | None]
) -> None:
    engine = recorded(checkpoint("llama"), pages=14, max_tokens_per_step=512, prefill_graphs=200)
    recorder = Recorder(engine)
    requests = [Request(f"r{i}", words(60, i), greedy(40)) for i in range(3)]
    sizes.clear()
    recorder.run(*requests)
    assert engine.stats().preemptions > 0
    assert len(sizes) > 1
    assert None not in sizes
    assert compare(recorder, reference("llama"), requests) < TOLERANCE


def test_what_is_added_behind_layers_is_not_recorded(checkpoint: Folder) -> None:
    engine = recorded(checkpoint("llama"))
    graphs, hidden = graphs_of(engine), engine._runner.hidden
    plain = DecoderInput(torch.zeros(9, hidden), torch.zeros(1, 9))
    assert graphs.size_for(plain) == 16
    feature = LayerFeature(slice(2, 4), torch.ones(2, hidden))
    assert graphs.size_for(dataclasses.replace(plain, features={0: [feature]})) is None


@pytest.mark.parametrize("careless", [False, True])
def test_rows_too_many_reach_no_page(
    careless: bool, checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the control: attention that is given all rows of a recording, and stores them."""
    engine = recorded(checkpoint("llama"))
    recorder = Recorder(engine)
    if careless:
        run = FlashInferAttention.run

        def of_all_rows(backend: FlashInferAttention, layer: int, *parts: torch.Tensor) -> Any:
            for half, rows in zip(backend._caches[layer], parts[1:3], strict=True):
                half[60, len(rows) : 16] = rows.as_strided((16, *rows.shape[1:]), rows.stride())[
                    len(rows) :
                ]
            return run(backend, layer, *parts)

        monkeypatch.setattr(FlashInferAttention, "run", of_all_rows)
    parts = [part for layer in engine._runner._cache.layers for part in layer]
    with torch.inference_mode():
        for part in parts:
            part.fill_(7)
    engine.add(Request("r", words(5, 5), greedy(3)))
    recorder.step()
    touched = {page for part in parts for page in range(65) if (part[page] != 7).any()}
    (page,) = recorder.batches[0].page_indices.tolist()
    assert touched == ({page, 60} if careless else {page})
    assert all((part[page, 5:] == 7).all() for part in parts)


def test_a_step_owes_nothing_to_the_one_before(checkpoint: Folder) -> None:
    """To the last bit: rows too many are zeros, whatever a longer batch left there."""
    request = Request("r", words(5, 5), greedy(2))
    fresh = Recorder(recorded(checkpoint("llama"), prefix_cache=False))
    fresh.run(request)
    used = Recorder(recorded(checkpoint("llama"), prefix_cache=False))
    used.run(Request("longer", words(40, 1), greedy(2)))
    graphs = graphs_of(used.engine)
    with torch.inference_mode():
        graphs._passed.residual.fill_(torch.nan)
        graphs._passed.attended.fill_(torch.nan)
    used.run(request)
    assert torch.equal(used.rows["r", 0, 4], fresh.rows["r", 0, 4])
    assert torch.isfinite(graphs._passed.residual[:16]).all()


def test_pieces_that_are_not_fed_are_noticed(
    checkpoint: Folder, reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: a replay of what the step before has left gives other logits."""
    request = Request("r", words(30, 3), greedy(3))
    recorder = Recorder(recorded(checkpoint("llama")))
    monkeypatch.setattr(graphs_of(recorder.engine)._passed, "fill", lambda batch, size: None)
    recorder.run(request)
    assert compare(recorder, reference("llama"), [request]) > 100 * TOLERANCE


class Inside(TorchDispatchMode):
    """Notes memory that is taken while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.given: set[int] = set()
        self.made: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        flat, _ = torch.utils._pytree.tree_flatten((args, kwargs))
        made = {one.untyped_storage().data_ptr() for one in self.made}
        self.given |= {
            storage
            for one in flat
            if isinstance(one, torch.Tensor)
            and (storage := one.untyped_storage().data_ptr()) not in made
        }
        result = func(*args, **kwargs)
        for one in torch.utils._pytree.tree_flatten(result)[0]:
            if isinstance(one, torch.Tensor) and self._new(one):
                self.made.append(one)
        return result

    def _new(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() not in self.given

    def spoil(self) -> None:
        """Overwrite it, as another recording of the same pool may."""
        for one in self.made:
            if one.is_floating_point():
                one.fill_(torch.nan)


class Spoiling(Recording):
    """What a recording allocates itself is gone when it has been replayed."""

    def capture(self, work: Callable[[], None], pool: Any) -> Graph:
        def spoiled() -> None:
            with Inside() as inside:
                work()
            inside.spoil()

        return super().capture(spoiled, pool)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2_vl", "gemma3_text"])
def test_nothing_that_is_handed_on_lies_in_the_pool(
    family: str, checkpoint: Folder, reference: Model
) -> None:
    recorder = Recorder(recorded(checkpoint(family), Spoiling()))
    requests = [Request(f"r{n}", words(n, n), greedy(3)) for n in (3, 9, 27)]
    recorder.run(*requests)
    assert compare(recorder, reference(family), requests) < TOLERANCE


def test_what_lies_in_the_pool_is_noticed(
    checkpoint: Folder, reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: angles as the first piece has made them, right where nobody else has a pool."""
    made: dict[Any, Any] = {}
    angles, before = FusedDecoder.angles, FusedDecoder.before

    def kept(decoder: FusedDecoder, *given: torch.Tensor) -> Any:
        made.update(angles(decoder, *given))
        return dict(made)

    def by_kept(decoder: FusedDecoder, index: int, normed: torch.Tensor, *given: Any) -> Any:
        return before(decoder, index, normed, made, *given[1:])

    monkeypatch.setattr(FusedDecoder, "angles", kept)
    monkeypatch.setattr(FusedDecoder, "before", by_kept)
    request = Request("r", words(27, 1), greedy(1))
    found = []
    for platform in (Recording(), Spoiling()):
        recorder = Recorder(recorded(checkpoint("llama"), platform))
        recorder.run(request)
        found.append(recorder.rows["r", 0, 26])
    expected = reference("llama").logits(request.prompt_ids)[-1]
    assert (found[0] - expected).abs().max() < TOLERANCE
    assert not torch.isfinite(found[1]).any()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_kernels_that_work_in_no_place_are_recorded_too(
    family: str, checkpoint: Folder, reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's give new tensors where FlashInfer's overwrite."""

    class OutOfPlace(TorchKernels):
        def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
            return PlainLinear(weight, bias)

    monkeypatch.setattr(Recording, "kernels", lambda platform: OutOfPlace())
    recorder = Recorder(recorded(checkpoint(family), Spoiling()))
    requests = [Request(f"r{n}", words(n, n), greedy(3)) for n in (3, 27)]
    recorder.run(*requests)
    assert compare(recorder, reference(family), requests) < TOLERANCE


def test_the_largest_size_is_recorded_first_and_the_pool_is_that_of_decoding(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    pools: set[int] = set()
    record = PrefillGraphs._record

    def watched(graphs: PrefillGraphs, size: int) -> list[Graph]:
        sizes.append(size)
        return record(graphs, size)

    class Pooled(Recording):
        def graph_pool(self) -> Any:
            return object()

        def capture(self, work: Callable[[], None], pool: Any) -> Graph:
            pools.add(id(pool))
            return super().capture(work, pool)

    monkeypatch.setattr(PrefillGraphs, "_record", watched)
    recorded(checkpoint("llama"), Pooled())
    assert sizes == [40, 32, 16]
    assert len(pools) == 1


def test_what_cannot_be_recorded_is_refused(checkpoint: Folder) -> None:
    class Unrecordable(Recording):
        def capture(self, work: Callable[[], None], pool: Any) -> Graph:
            work()
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(EngineError, match=r"set engine\.prefill_graphs=0"):
        recorded(checkpoint("llama"), Unrecordable())
    with pytest.raises(ModelUnsupported, match=r"fused layers.*set engine\.prefill_graphs=0"):
        recorded(checkpoint("llama"), fuse=False)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["engine=cpu"], r"engine\.prefill_graphs=64 needs engine=cuda"),
        (["engine=cuda", "engine.graphs=false"], r"set engine\.graphs=true"),
        (["engine=cuda", "engine.fuse=false"], r"set engine\.fuse=true"),
        (["engine=cuda", "parallelism.tensor=2"], r"parallelism\.tensor=2.*prefill_graphs=0"),
        (["engine=cuda", "engine.max_tokens_per_step=63"], r"engine\.max_tokens_per_step=63"),
    ],
)
def test_where_it_cannot_work_the_key_is_refused(
    told: list[str], said: str, checkpoint: Folder
) -> None:
    folder = checkpoint("llama")
    base = [f"model.path={folder}", *told]
    with pytest.raises(PlanError, match=said) as raised:
        planned_options(compose([*base, "engine.prefill_graphs=64"]).config, folder)
    assert "\n" not in str(raised.value)
    planned_options(compose([f"model.path={folder}", told[0]]).config, folder)


def test_the_key_reaches_the_engine(checkpoint: Folder) -> None:
    folder = checkpoint("llama")
    base = [f"model.path={folder}", "engine=cuda"]
    assert planned_options(compose(base).config, folder).prefill_graphs == 0
    options = planned_options(compose([*base, "engine.prefill_graphs=64"]).config, folder)
    assert options.prefill_graphs == 64
