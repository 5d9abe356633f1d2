"""The plan's numbers against models that were really loaded, and its refusals."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from appliance.config.compose import compose
from appliance.config.errors import ConfigurationError
from appliance.planning import engine_options as options_of
from appliance.planning import plan_recipe
from appliance.tasks import plan as plan_task
from bench.reference import engine_options
from engine.device.host_memory import available_memory, cpu_has_native
from engine.errors import ModelUnsupported
from engine.memory.checkpoint import read_checkpoint
from engine.memory.plan import GIB, Plan, PlanError, plan, resolve_dtype
from engine.models.loader import load_model
from engine.models.registry import family_for
from engine.native.choice import computes
from engine.native.loading import variants
from engine.scheduling.admission import admission
from tests.checkpoints import (
    WRITERS,
    write_bert,
    write_bert_reranker,
    write_llama,
    write_llava,
    write_qwen2_vl,
    write_whisper,
)
from tests.conftest import Launch

ROOM = 4 * GIB
LLAMA_ALONE = b'{"architectures": ["LlamaForCausalLM"]}'


def planned(folder: Path, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "max_len": 0,
        "max_tokens_per_step": 256,
        "max_sequences": 8,
        "encoder_cache_bytes": 1 << 20,
        "modalities": (),
        "available_bytes": ROOM,
    } | changes
    available = settings.pop("available_bytes")
    return plan(engine_options(folder, **settings), available)


@dataclass
class Loaded:
    folder: Path
    model: Any
    tower: str | None  # the modality of its first

    @property
    def text(self) -> Any:
        return self.model.config.get_text_config()


@pytest.fixture(scope="module", params=[*WRITERS, "qwen2_vl flat"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    name, _, flat = request.param.partition(" ")
    options: dict[str, Any] = {"flat": True} if flat else {}
    folder = WRITERS[name](tmp_path_factory.mktemp("checkpoint") / name, **options)
    family = family_for(folder)
    model = family.model_class().from_pretrained(folder, **family.model_settings())
    return Loaded(folder, model, next(iter(family.modalities), None))


def test_weights_are_the_bytes_of_the_loaded_parameters(loaded: Loaded) -> None:
    modalities = (loaded.tower,) if loaded.tower else ()
    model = load_model(str(loaded.folder), "float32", "cpu", modalities).model
    there = sum(p.numel() * p.element_size() for p in model.parameters())
    assert planned(loaded.folder, modalities=modalities).weights_bytes == there
    half = planned(loaded.folder, modalities=modalities, dtype="bfloat16")
    assert half.weights_bytes * 2 == there


def test_a_tower_that_is_not_loaded_is_not_counted(loaded: Loaded) -> None:
    towers = ("visual.", "vision_tower.", "audio_tower.", "multi_modal_projector.")
    towers += ("encoder.",) if loaded.tower else ()  # which without one is the model itself
    decoder = sum(
        p.numel()
        for name, p in loaded.model.named_parameters()
        if not name.removeprefix("model.").startswith(towers)
    )
    without = planned(loaded.folder)
    assert without.parameters == decoder
    assert without.encoder_bytes == without.encoder_cache_bytes == 0
    if loaded.tower:
        whole = planned(loaded.folder, modalities=(loaded.tower,))
        assert whole.parameters > decoder
        assert whole.encoder_bytes > 0


def test_kv_bytes_are_those_of_transformers_own_cache(loaded: Loaded) -> None:
    if family_for(loaded.folder).encoder_only:
        plan = planned(loaded.folder)
        assert plan.kv_bytes_per_token == plan.kv_bytes == 0
        return
    tokens = 5
    states = family_for(loaded.folder).state_sizes()
    ids = torch.ones(1, tokens, dtype=torch.long)
    with torch.no_grad():
        if states is not None:
            encoded = (torch.zeros(1, states.page, loaded.model.config.d_model),)
            cache = loaded.model(encoder_outputs=encoded, decoder_input_ids=ids).past_key_values
            assert planned(loaded.folder).state_page_bytes == held(cache.cross_attention_cache)
            cache = cache.self_attention_cache
        else:
            text = loaded.model.language_model if loaded.tower == "audio" else loaded.model
            cache = text(ids).past_key_values
    assert planned(loaded.folder).kv_bytes_per_token * tokens == held(cache)


def held(cache: Any) -> int:
    """Bytes of all keys and values in it."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )


def test_sequence_length_is_the_checkpoints_unless_told(loaded: Loaded) -> None:
    positions = family_for(loaded.folder).text_config()["max_position_embeddings"]
    told = getattr(loaded.text, "max_position_embeddings", None)
    assert planned(loaded.folder).max_len == (told or loaded.text.max_target_positions)
    assert planned(loaded.folder).max_len == positions
    assert planned(loaded.folder, max_len=100).max_len == 100


def test_sharded_checkpoints_are_counted_whole(tmp_path: Path) -> None:
    whole = write_llama(tmp_path / "whole")
    model = transformers.AutoModelForCausalLM.from_pretrained(whole)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert planned(tmp_path / "sharded").weights_bytes == planned(whole).weights_bytes


def test_pages_hold_what_the_plan_says(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    made = planned(folder, kv_cache_gb=0.01, max_len=512)
    page = made.page_size * made.kv_bytes_per_token
    assert made.kv_bytes <= 0.01 * GIB < made.kv_bytes + page
    assert (made.pages + 1) * page == made.kv_bytes
    assert made.tokens == made.pages * 16
    assert made.concurrency(512) == min(8, made.tokens // 512)
    assert made.concurrency(500) == made.concurrency(512)  # whole pages
    many = planned(folder, kv_cache_gb=0.01, max_len=512, max_sequences=10**6)
    assert many.concurrency(512) == many.pages // 32 > 8


def test_the_cache_takes_a_quarter_of_what_is_left_and_no_more_than_can_be_used(
    tmp_path: Path,
) -> None:
    folder = write_llama(tmp_path / "tiny")
    enough = planned(folder, max_len=64, max_sequences=4)
    assert enough.pages == 4 * 64 // 16
    limited = planned(folder, max_sequences=10**6)
    left = ROOM - limited.fixed_bytes
    assert 0.24 * left < limited.kv_bytes <= 0.25 * left


def test_every_sequence_that_may_run_has_pages_for_what_it_attends_to_across(
    tmp_path: Path,
) -> None:
    folder = write_whisper(tmp_path / "tiny")
    enough = planned(folder, modalities=("audio",), max_sequences=4)
    assert enough.state_pages == enough.concurrency(448) == 4
    assert enough.resolved.state_pages == 4
    assert enough.total_bytes == enough.fixed_bytes + enough.kv_bytes + enough.state_bytes
    each = enough.state_page_bytes + 448 * enough.kv_bytes_per_token
    few = planned(folder, max_sequences=64, kv_cache_gb=10.5 * each / GIB)
    assert 8 <= few.concurrency(448) == few.state_pages <= 10
    assert few.kv_bytes + few.state_bytes <= 10.5 * each
    one = planned(folder, max_sequences=64, kv_cache_gb=3 * each / GIB)
    assert one.concurrency(448) >= 1
    with pytest.raises(PlanError, match=r"raise engine\.kv_cache_gb"):
        planned(folder, kv_cache_gb=each / GIB / 2)


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"tensor_parallel": 2}, "parallelism.tensor=1"),
        ({"quantization": "int8"}, "model.quantization=null"),
    ],
)
def test_what_layers_that_attend_across_do_not_have_is_refused(
    asked: dict[str, Any], key: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=re.escape(f"set {key}")):
        planned(write_whisper(tmp_path / "tiny"), **asked)


def test_what_cannot_fit_is_refused_with_arithmetic_that_adds_up(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    with pytest.raises(PlanError) as told:
        planned(folder, kv_cache_gb=5)
    message = str(told.value)
    sums, total = message.split(" = ")
    terms = [_bytes(term) for term in re.findall(r"[\d.]+ [KMG]iB", sums)]
    assert len(terms) == 4
    assert math.isclose(sum(terms), _bytes(total.split(",")[0]), rel_tol=0.01)
    assert "4.00 GiB are available" in message
    assert "engine.kv_cache_gb" in message
    planned(folder, kv_cache_gb=3)


def test_a_cache_smaller_than_one_sequence_is_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    with pytest.raises(PlanError, match=r"lower model\.max_len"):
        planned(folder, kv_cache_gb=0.001)
    assert planned(folder, kv_cache_gb=0.001, max_len=1024).tokens >= 1024


def test_too_little_memory_for_one_sequence_is_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    needed = planned(folder, max_sequences=1).total_bytes
    planned(folder, max_sequences=1, available_bytes=needed)
    with pytest.raises(PlanError, match=r"one sequence .* lower model\.max_len"):
        planned(folder, max_sequences=1, available_bytes=needed - 1)


def test_more_positions_than_the_model_has_are_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    with pytest.raises(PlanError, match=r"model\.max_len=4097 is more than the model's 4096"):
        planned(folder, max_len=4097)


def test_a_modality_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    config = compose([f"model.path={folder}", "media.image.limit=1"]).config
    with pytest.raises(PlanError, match=r"takes no images: set media\.image\.limit=0"):
        plan_recipe(config, folder)
    config.media.image.limit = 0
    plan_recipe(config, folder)


def test_larger_images_need_a_larger_tower_budget(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "tiny")
    alone = {"modalities": ("image",), "max_tokens_per_step": 64}  # one image, of 64 tokens
    small = planned(folder, **alone).encoder_bytes
    assert planned(folder, modalities=("image",)).encoder_bytes == 256 // 64 * small
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor["max_pixels"] *= 4
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    assert planned(folder, **alone).encoder_bytes == 4 * small
    bounded = planned(folder, **alone, max_len=64).encoder_bytes
    assert bounded == small  # a prompt of 64 tokens holds no larger image


def test_a_nested_config_that_leaves_out_llamas_defaults_is_read(tmp_path: Path) -> None:
    """As the published LLaVA-1.5 does."""
    folder = write_llava(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    keep = ("model_type", "max_position_embeddings", "vocab_size")
    config["text_config"] = {key: config["text_config"][key] for key in keep}
    (folder / "config.json").write_text(json.dumps(config))
    expected = transformers.AutoConfig.from_pretrained(folder).text_config
    checkpoint = read_checkpoint(folder)
    assert checkpoint.layers == expected.num_hidden_layers
    assert checkpoint.kv_heads == expected.num_key_value_heads
    assert checkpoint.head_dim == expected.head_dim
    assert checkpoint.intermediate == expected.intermediate_size


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.json", b"{", "config.json is missing or not JSON"),
        ("config.json", b"{}", r"no family for architecture \(none named\)"),
        ("config.json", LLAMA_ALONE, "config.json lacks num_attention_heads"),
        ("model.safetensors", b"", "not a safetensors file"),
        ("model.safetensors", b"\xff" * 64, "not a safetensors file"),
        ("model.safetensors", (9).to_bytes(8, "little") + b"{not json", "not a safetensors file"),
    ],
)
def test_a_broken_checkpoint_is_named(
    tmp_path: Path, file: str, content: bytes, expected: str
) -> None:
    folder = write_llama(tmp_path / "tiny")
    (folder / file).write_bytes(content)
    with pytest.raises(ModelUnsupported, match=expected):
        planned(folder)


def test_admission_is_what_the_plan_has_room_for() -> None:
    assert admission(10, 6, max_len=16, pages=1, page_size=16) is None
    assert "the model takes 16" in str(admission(10, 7, max_len=16, pages=9, page_size=16))
    assert "the KV cache holds 16" in str(admission(10, 7, max_len=99, pages=1, page_size=16))
    assert admission(10, 7, max_len=99, pages=2, page_size=16) is None


def test_the_type_is_the_checkpoints_where_the_cpu_has_it(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny", dtype="bfloat16")
    assert resolve_dtype("float16", folder, "cpu") == "float16"
    assert resolve_dtype("auto", folder, "cuda") == "bfloat16"
    native = cpu_has_native("bfloat16")
    assert resolve_dtype("auto", folder, "cpu", ROOM) == ("bfloat16" if native else "float32")
    assert resolve_dtype("auto", folder, "cpu", 1000) == "bfloat16"  # float32 would not fit twice
    assert resolve_dtype("auto", folder, "cpu", ROOM, ours=True) == "bfloat16"
    half = write_llama(tmp_path / "half", dtype="float16")
    assert resolve_dtype("auto", half, "cpu", ROOM, ours=True) == "float32"
    assert computes("auto", fuse=True, ranks=1) == bool(variants())
    assert not computes("auto", fuse=True, ranks=2)
    assert not computes("auto", fuse=False, ranks=1)
    assert not computes("torch", fuse=True, ranks=1)
    full = write_llama(tmp_path / "full")
    assert resolve_dtype("auto", full, "cuda") == "bfloat16"  # no kernels attend in float32


def test_instructions_are_read_from_the_cpus_flags(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f avx512_bf16 sse\n")
    assert cpu_has_native("bfloat16", tmp_path)
    assert not cpu_has_native("float16", tmp_path)
    assert cpu_has_native("float32", tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1024),
        ({"memory.max": "max", "memory.current": "5"}, 1024),
        ({"own/memory.max": "700", "own/memory.current": "300"}, 400),
        ({"memory.max": "700", "memory.current": "600"}, 100),
        (
            {
                "memory.max": "700",
                "memory.current": "600",
                "memory.stat": "anon 1\ninactive_file 50\n",
            },
            150,
        ),
        (
            {
                "memory/own/memory.limit_in_bytes": "9223372036854771712",
                "memory/own/memory.usage_in_bytes": "1",
                "memory/memory.limit_in_bytes": "800",
                "memory/memory.usage_in_bytes": "100",
            },
            700,
        ),
    ],
)
def test_memory_is_what_the_tightest_cgroup_leaves(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 1 kB\n")
    (proc / "self" / "cgroup").write_text("4:memory:/own\n3:cpu:/own\n0::/own\n")
    for name, content in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(f"{content}\n")
    assert available_memory(proc, cgroup) == expected


def _bytes(text: str) -> float:
    amount, unit = text.split()
    return float(amount) * 1024.0 ** "BKMGT".index(unit[0])


def test_task_plan_prints_one_screen(launch: Launch, tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "tiny")
    ran = launch(f"model.path={folder}", "task=plan", "media.image.limit=2", "model.max_len=2048")
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) <= 24
    made = plan_recipe(
        compose([f"model.path={folder}", "media.image.limit=2", "model.max_len=2048"]).config,
        folder,
    )
    for expected in (
        f"{made.parameters:,} parameters x 4 bytes",
        f"x {made.kv_bytes_per_token:,} bytes",
        "image tower",
        "encoder cache",
        "sequences of     512 tokens",
        "sequences of   2,048 tokens",
        f"Layers: our kernels for {variants()[0]}.",
    ):
        assert expected in ran.stdout


def test_prompts_are_bound_on_a_cpu_and_on_a_card_where_it_is_asked(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    for keys, seconds in (
        ([], 0.1),
        (["engine.prefill_ms=null"], None),
        (["engine.prefill_ms=40"], 0.04),
        (["engine=cuda"], None),
        (["engine=cuda", "engine.prefill_ms=40"], 0.04),
    ):
        config = compose([f"model.path={folder}", *keys]).config
        assert options_of(config, folder).prefill_seconds == seconds
    with pytest.raises(ConfigurationError):
        compose(["engine.prefill_ms=0"])


def test_a_card_refuses_drafts_and_a_cpu_takes_them(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    asked = [f"model.path={folder}", "engine.speculation=ngram", "engine.speculation_tokens=5"]
    options = plan_recipe(compose(asked).config, folder, ROOM).options
    assert (options.speculation, options.speculation_tokens) == ("ngram", 5)
    options = plan_recipe(compose(asked[:2]).config, folder, ROOM).options
    assert options.speculation_tokens == 8
    with pytest.raises(PlanError, match=r"^engine\.speculation_tokens=5 is of engine\.speculation"):
        plan_recipe(compose([asked[0], asked[2]]).config, folder, ROOM)
    with pytest.raises(PlanError, match=r"^engine\.speculation=ngram is for engine=cpu: ") as told:
        plan_recipe(compose([*asked, "engine=cuda"]).config, folder, ROOM)
    assert "\n" not in str(told.value)


def test_task_plan_refuses_with_exit_code_2(launch: Launch, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    ran = launch(f"model.path={folder}", "task=plan", "engine.kv_cache_gb=1000000")
    assert ran.returncode == 2
    assert ran.stderr.startswith("appliance: weights ")
    assert "are available" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_task_plan_does_not_load_weights(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "tiny")
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(8 + header)
        file.truncate(size)  # a hole where the weights were
    assert plan_task.run(compose([f"model.path={folder}", "task=plan"])) == 0
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError):
        plan_task.run(compose([f"model.path={folder}", "task=plan"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_plan_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = signal.getsignal(number)

    def slow(*_: object) -> None:
        assert list(tmp_path.iterdir())
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(plan_task, "plan_recipe", slow)
    with pytest.raises(SystemExit) as ended:
        plan_task.run(compose(["recipe=demo"]))
    assert ended.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("embeddings.serve=false", "set embeddings.serve=true"),
        ("embeddings.dimensions=[32,65]", "has 65, and vectors of this model have 64 numbers"),
        ("engine.kv_cache_gb=1", "set engine.kv_cache_gb=null"),
        ("engine.native=avx2", "set engine.native=auto"),
        ("engine.max_tokens_per_step=64", "engine.max_tokens_per_step=128, not 64"),
        ("engine.speculation=ngram", "set engine.speculation=null"),
        ("parallelism.tensor=2", "set parallelism.tensor=1"),
        ("model.quantization=int8", "set model.quantization=null"),
    ],
)
def test_an_encoder_is_planned_without_what_it_does_not_have(
    tmp_path: Path, override: str, says: str
) -> None:
    folder = write_bert(tmp_path / "bert")
    served = [f"model.path={folder}", "embeddings.serve=true"]
    found = plan_recipe(compose(served).config, folder, ROOM)
    assert found.kv_bytes == 0
    assert found.concurrency(found.max_len) == found.max_sequences
    assert "no KV cache" in plan_task.table(found)
    with pytest.raises(PlanError, match=re.escape(says)):
        plan_recipe(compose([*served, override]).config, folder, ROOM)
    with pytest.raises(PlanError, match="are available"):
        plan_recipe(compose(served).config, folder, 1 << 20)


def test_a_recipe_says_what_an_encoder_is_for(tmp_path: Path) -> None:
    scores, makes = write_bert_reranker(tmp_path / "scores"), write_bert(tmp_path / "makes")
    for folder, right in ((scores, "embeddings.rerank=true"), (makes, "embeddings.serve=true")):
        for served in ("embeddings.rerank=true", "embeddings.serve=true"):
            config = compose([f"model.path={folder}", served]).config
            if served == right:
                assert plan_recipe(config, folder, ROOM).kv_bytes == 0
            else:
                with pytest.raises(PlanError, match=r"embeddings\.rerank="):
                    plan_recipe(config, folder, ROOM)
