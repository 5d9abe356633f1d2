"""Weights of eight and four bits on the CPU: every family's logits, any batch, memory, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from bench import accuracy
from bench.reference import TOLERANCE, Recorder, Reference, compare, engine_options
from engine.core import Engine
from engine.errors import ModelUnsupported
from engine.layers.native import NativeDecoder, NativeHead
from engine.memory import mapped
from engine.memory.checkpoint import read_checkpoint
from engine.memory.plan import PlanError, plan
from engine.memory.quantization import integers, weights_bytes
from engine.native import choice
from engine.native.library import Packed
from engine.native.loading import LibraryUnusable, variants
from tests.engine.native.integers import dequantized
from tests.engine.running.test_native import hold_to_rounding, hold_to_the_last_bit
from tests.engine.running.test_oracle import TEXT, VISION, requests_for

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]
FORMS = ("int8", "int4")


def kept(weight: torch.Tensor, form: str) -> torch.Tensor:
    """What integers keep of a weight."""
    return dequantized(Packed([weight], quantization=form, dtype=torch.float32)).to(weight.dtype)


def of_integers(folder: Path, form: str) -> Reference:
    """transformers' model with what integers keep of the products that are quantized."""
    reference = Reference(folder)
    for layer in reference.family.decoder(reference.model).layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = kept(module.weight.data, form)
    head = reference.model.get_output_embeddings()
    head.weight = nn.Parameter(kept(head.weight.data, "int8"))  # the table of a tied one stays
    return reference


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", TEXT + VISION)
def test_logits_are_those_of_what_the_integers_mean(
    family: str, form: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    recorder = Recorder(Engine(engine_options(folder, quantization=form, max_tokens_per_step=512)))
    assert isinstance(recorder.engine._runner._decoder, NativeDecoder)
    requests = requests_for(folder, family)
    recorder.run(*requests)
    assert compare(recorder, of_integers(folder, form), requests) < TOLERANCE
    assert compare(recorder, reference(family), requests) > 1000 * TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", variants()[1:])
def test_every_variant_has_them(variant: str, form: str, checkpoint: Folder) -> None:
    folder = checkpoint("qwen3")
    options = engine_options(folder, quantization=form, native=variant, max_tokens_per_step=96)
    recorder = Recorder(Engine(options))
    requests = requests_for(folder, "qwen3")
    recorder.run(*requests)
    assert compare(recorder, of_integers(folder, form), requests) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_as_near_as_transformers_own(form: str, checkpoint: Folder) -> None:
    """Both of what the integers mean, in float32; transformers' is rounded to bfloat16."""
    folder = checkpoint("qwen3")
    exact = of_integers(folder, form)
    rounded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    rounded.load_state_dict(exact.model.state_dict())
    engine = Engine(engine_options(folder, dtype="bfloat16", quantization=form))
    hold_to_rounding(engine, exact, rounded)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_the_same_whatever_runs_beside_it(
    form: str, dtype: str, checkpoint: Folder
) -> None:
    """To the last bit, but by amx: alone, beside few, and beside many, which are unpacked first."""
    folder = checkpoint("qwen3")
    hold_to_the_last_bit(folder, neighbours=(0, 2, 11), dtype=dtype, quantization=form)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_planned_is_what_is_held(family: str, form: str, checkpoint: Folder) -> None:
    """A tied head's table stays, another's weight is but mapped, no product is there twice."""
    folder = checkpoint(family)
    options = engine_options(folder, quantization=form, dtype="bfloat16", modalities=())
    engine = Engine(options)
    runner = engine._runner
    decoder, head, model = runner._decoder, runner._head, runner.loaded.model
    assert isinstance(decoder, NativeDecoder)
    assert isinstance(head, NativeHead)
    packed = [one for one in decoder._held if isinstance(one, Packed)]
    assert {one.form for one in packed} == {form}
    assert head._packed.form == "int8"
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    held = sum(one.nbytes for one in packed) + (0 if tied else head._packed.nbytes)
    last = None if tied else model.get_output_embeddings().weight  # mapped, as it is stored
    held += sum(p.nbytes for p in model.parameters() if p is not last)
    assert last is None or last.dtype == torch.float32
    planned = plan(options, available_bytes=1 << 40)
    assert planned.weights_bytes == held
    whole = plan(replace(options, quantization=None), available_bytes=1 << 40)
    assert whole.weights_bytes > 1.3 * held
    assert whole.slack_bytes > planned.slack_bytes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fuse": False}, "is of fused layers: set engine.fuse=true"),
        ({"dtype": "float16"}, "has no kernels of float16: set model.dtype=bfloat16"),
        ({"native": "torch"}, "not torch's operators: set engine.native=auto"),
        ({"native": "vax"}, "is by our kernels: engine.native=vax: this processor has"),
        ({"tensor_parallel": 2}, "is of whole layers: set parallelism.tensor=1"),
    ],
)
def test_settings_that_have_none_are_refused(
    changes: dict[str, object], reason: str, checkpoint: Folder
) -> None:
    options = engine_options(checkpoint("llama"), quantization="int4")
    plan(options, available_bytes=1 << 40)
    refused = replace(options, **changes)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=reason) as fault:
        plan(refused, available_bytes=1 << 40)
    assert str(fault.value).startswith("model.quantization=int4 ")
    assert "\n" not in str(fault.value)
    if "tensor_parallel" not in changes:  # that needs processes
        with pytest.raises(ModelUnsupported, match=r"^model\.quantization=int4 is|has"):
            Engine(refused)


def test_models_and_machines_that_have_none_are_refused(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("llama")
    options = engine_options(folder, quantization="int8")
    with monkeypatch.context() as patch:
        patch.setattr("engine.running.cpu_platform.fusible", lambda stack: False)
        with pytest.raises(ModelUnsupported, match="of no pattern that is known: set model"):
            Engine(options)
    with monkeypatch.context() as patch:
        patch.setattr("engine.memory.quantization.GROUP", 48)
        with pytest.raises(PlanError, match="groups of 48 inputs, a layer here has 64: set model"):
            plan(options, available_bytes=1 << 40)

    def missing() -> list[str]:
        raise LibraryUnusable("libappliance.so was not built when this was installed")

    monkeypatch.setattr(choice, "variants", missing)
    for start in (Engine, lambda given: plan(given, available_bytes=1 << 40)):
        with pytest.raises(
            (PlanError, ModelUnsupported), match=r"int8 is by our kernels: .* built"
        ):
            start(options)


def test_a_weight_that_is_no_number_is_refused(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = mapped.load_for_quantization

    def spoiled(*given: object, **more: object) -> object:
        loaded = load(*given, **more)  # type: ignore[arg-type]
        weight = loaded.stack.layers[0].mlp.down_proj.weight
        weight.data = weight.data.clone()
        weight.data[3, 5] = float("nan")
        return loaded

    monkeypatch.setattr("engine.memory.mapped.load_for_quantization", spoiled)
    with pytest.raises(ModelUnsupported, match="int8: a weight has values that are no numbers"):
        Engine(engine_options(checkpoint("llama"), quantization="int8"))


def test_bytes_are_those_of_integers_and_scales(checkpoint: Folder) -> None:
    folder = checkpoint("qwen3")
    sizes = read_checkpoint(folder)
    whole = engine_options(folder, dtype="bfloat16")
    assert not integers("fp8")
    assert not integers(None)
    for form, bits in (("int8", 8.5), ("int4", 5.0)):
        saved = weights_bytes(whole, sizes, 0)
        saved -= weights_bytes(replace(whole, quantization=form), sizes, 0)
        saved -= 0 if sizes.tied else int(sizes.embedding_parameters * (16 - 8.5) / 8)
        assert saved == int(sizes.product_parameters * (16 - bits) / 8)


def test_what_they_cost_is_measured(
    checkpoint: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.md"
    text.write_text("What is in the picture? A dog and a cat, a tree and a house. " * 40)
    folder = checkpoint("llama")
    sizes = ["--pieces", "2", "--length", "48", "--answers", "8", "--threads", "1"]
    assert accuracy.main(["--checkpoint", str(folder), "--text", str(text), *sizes]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    whole, eight, four = ([cell.strip() for cell in row] for row in rows[2:])
    assert (whole[0], eight[0], four[0]) == ("float32", "int8", "int4")
    assert whole[3:] == ["100.0 %", "100.0 %", "2 of 2"]
    lost = [abs(float(row[2]) / float(whole[2]) - 1) for row in (eight, four)]
    assert 0 < lost[0] < lost[1]
    assert float(four[3].split()[0]) < 100
    assert accuracy.same_before([1, 2, 3], [1, 2, 4]) == 2
