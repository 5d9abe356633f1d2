"""The start-up summary says on one screen what runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.compose import compose
from appliance.planning import plan_recipe
from appliance.summary import render
from appliance.tasks.plan import table
from engine.memory.plan import PlanError, size
from engine.native.loading import variants
from tests.checkpoints import write_qwen2_vl, write_ultravox


def summary(folder: Path, *told: str, address: str | None = None) -> str:
    composed = compose([f"model.path={folder}", *told])
    return render(composed, plan_recipe(composed.config, folder), address)


def test_it_names_everything_an_operator_asks(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "tiny")
    told = ["media.image.limit=3", "server.port=9", "model.name=eyes", "server.api_keys=[s3cret]"]
    composed = compose([f"model.path={folder}", *told])
    plan = plan_recipe(composed.config, folder)
    text = render(composed, plan)
    for expected in (
        "eyes",
        "Qwen2VLForConditionalGeneration",
        "float32",
        f"cpu, all threads, fused layers, our kernels for {variants()[0]}",
        f"{plan.pages:,} pages of 16 = {plan.tokens:,} tokens",
        "up to 3 a request",
        "remote media",
        "http://127.0.0.1:9",
        composed.digest,
        "1 accepted",
    ):
        assert expected in text
    assert "s3cret" not in text
    assert len(text.splitlines()) <= 20


def test_it_says_what_answers_may_hold(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "tiny")
    composed = compose([f"model.path={folder}"])
    plan = plan_recipe(composed.config, folder)
    said = "text, calls of tools as hermes"
    assert f"answers       {said}" in render(composed, plan, answers=said)
    assert "answers  " not in render(composed, plan)


def test_images_that_are_refused_are_said_to_be(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "tiny")
    assert "images        refused" in summary(folder)


def test_every_modality_has_its_limits_said(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "tiny")
    told = ["media.image.limit=2", "media.video.limit=1", "media.video.max_seconds=7"]
    text = summary(folder, *told, "media.video.max_bytes=1048576", "media.embeddings.accept=true")
    assert "videos        up to 1 a request, 1.00 MiB and 7 s each" in text
    assert "sounds        refused" in text
    assert "embeddings    taken in place of images, 128.00 MiB each" in text
    sound = write_ultravox(tmp_path / "sound")
    text = summary(sound, "media.audio.limit=3", "media.audio.max_seconds=45")
    assert "sounds        up to 3 a request, 25.00 MiB and 45 s each" in text


def test_the_address_is_the_one_that_was_bound(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "tiny")
    assert "http://127.0.0.1:4711" in summary(folder, address="http://127.0.0.1:4711")
    assert "unix:/run/appliance" in summary(folder, "server.uds=/run/appliance")
    assert "http://[::1]:8000" in summary(folder, "server.host='::1'")


def test_weights_of_fewer_bits_are_said(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "tiny")
    for form, words in (
        ("int8", "layers and head in int8"),
        ("int4", "layers in int4, head in int8"),
    ):
        told = [f"model.path={folder}", f"model.quantization={form}"]
        composed = compose(told)
        plan = plan_recipe(composed.config, folder)
        assert f"float32, {words}, {size(plan.weights_bytes)}" in render(composed, plan)
        assert f"parameters, those of {words}, others x 4 bytes" in table(plan)
    composed = compose([f"model.path={folder}", "engine=cuda", "model.quantization=int8"])
    with pytest.raises(PlanError, match=r"^model\.quantization=int8 needs engine=cpu$"):
        plan_recipe(composed.config, folder)


def test_whose_kernels_compute_is_said(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "tiny")
    assert "fused layers, torch's operators" in summary(folder, "engine.native=torch")
    assert "unfused layers, torch's operators" in summary(folder, "engine.fuse=false")
