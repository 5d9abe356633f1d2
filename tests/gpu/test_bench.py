"""The benchmark runs as it is, on a CPU with tiny shapes, and can tell wrong from right."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import transformers

from bench import gpu
from bench import gpu_parts as parts_of_a_run
from bench.gpu_checks import Check, kernel_checks
from bench.gpu_models import QWEN2_VL_2B, QWEN2_VL_7B, TINY, Shape, random_model, write_folder
from bench.gpu_parts import Part, Run
from bench.gpu_rows import Report, Row
from bench.gpu_speed import Limits, ShapeBench, Sizes, covered, pays_from
from bench.stand_in import torch_flashinfer
from bench.stand_in.platforms import Recording, standing_in


def test_a_dry_run_does_every_part_and_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--dry-run", "--output", str(tmp_path)]) == 0
    result, record = sorted(tmp_path.iterdir(), reverse=True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-cpu.md", result.name)
    assert record.name == result.with_suffix(".jsonl").name
    text = result.read_text()
    assert "failed" not in text
    assert "left out" not in text
    for row in (
        "kernels equal to torch",
        "demo's answers as on the CPU, recorded",
        "demo's answers, wrong pages",
        "llama, float32, graphs",
        "qwen2_vl, float32, wrong pages",
        "copy bandwidth",
        "tiny decode, batch 2",
        "tiny prefill",
        "tiny prefill by fa2",
        "tiny prompt of 24 tokens",
        "llama, float32, graphs of prompts",
        "gemma3, float32, graphs of towers",
        "tiny tower, one picture of 64 patches",
        "tiny decode kernel by kernel",
        "tiny decode unfused",
        "transformers' generate",
        "gemma3, float32, wrong pages",
        "tiny tower, flashinfer, 64 patches",
        "tiny tower, flashinfer is faster from",
        "tiny gate and up, 32 rows",
        "tiny host, batch 2:",
        "served: the exam",
        "served: the exam, wrong pictures",
        "served: preemptions with few pages",
        "served: beginnings with few pages",
    ):
        assert row in text
    assert text.splitlines()[-1] in capsys.readouterr().out


def test_without_time_parts_are_left_out_and_begun_by_a_run_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--dry-run", "--output", str(tmp_path)]
    assert gpu.main([*told, "--minutes", "0"]) == 0
    table = next(tmp_path.glob("*.md"))
    assert table.read_text().count("left out: no time") == len(parts_of_a_run.parts(tiny=True))
    assert gpu.main([*told, "--resume", "--only", "limits"]) == 0
    assert "copy bandwidth" in table.read_text()
    first = table.read_text()
    measured = "[limits: "
    assert measured in capsys.readouterr().out
    assert gpu.main([*told, "--resume", "--only", "limits"]) == 0
    assert table.read_text() == first
    assert measured not in capsys.readouterr().out
    assert gpu.main([*told, "--only", "limits"]) == 0  # which begins anew
    assert measured in capsys.readouterr().out


def test_a_part_that_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no part is called speed: kernels, demo"):
        gpu.main(["--dry-run", "--output", str(tmp_path), "--only", "speed"])
    assert list(tmp_path.iterdir()) == []


class Planted:
    """Parts of a worker that raise, hang or end, in the place of those that measure."""

    @staticmethod
    def raising(run: Run) -> Iterator[Row]:
        yield Row("before", "told")
        raise RuntimeError("planted | here")

    @staticmethod
    def hanging(run: Run) -> Iterator[Row]:
        yield Row("begun", "told")
        time.sleep(60)

    @staticmethod
    def ending(run: Run) -> Iterator[Row]:
        yield Row("begun", "told")
        os._exit(3)

    @staticmethod
    def sound(run: Run) -> Iterator[Row]:
        yield Row("sound", "told")


def planted(*, tiny: bool) -> list[Part]:
    return [
        Part("raising", 0, 30, Planted.raising),
        Part("hanging", 0, 1, Planted.hanging),
        Part("ending", 0, 30, Planted.ending),
        Part("sound", 0, 30, Planted.sound),
    ]


work = gpu.work


def planted_work(pipe: Connection, folder: Path, tiny: bool) -> None:
    work(pipe, folder, tiny, planted)


def test_a_part_that_fails_hangs_or_dies_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "work", planted_work)
    assert gpu.main(["--dry-run", "--output", str(tmp_path)]) == 1
    text = next(tmp_path.glob("*.md")).read_text()
    assert "| before | told |" in text
    assert "failed: RuntimeError: planted / here" in text
    assert text.count("| begun | told |") == 2
    assert "| hanging | ended after 1 s | to end | NO |" in text
    assert "| ending | its process ended with 3 | to run | NO |" in text
    assert "| sound | told |" in text


def test_a_kernel_that_raises_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    run = Run(tmp_path, tiny=True)
    run.platform = Recording(standing_in(rmsnorm=broken))
    run.exact = Recording()
    few = itertools.islice(kernel_checks(run.platform, run.exact, torch.float32), 12)
    monkeypatch.setattr(parts_of_a_run, "kernel_checks", lambda *_: few)
    rows = list(parts_of_a_run.kernels(run))
    failed = {row.what for row in rows if "no such kernel" in row.found}
    assert failed == {"norm", "norm_heads"}
    assert rows[-1].passed is False
    right, count = map(int, rows[-1].found.split(" of "))
    assert count - right == len(failed)
    assert right >= 10


def test_a_wrong_kernel_fails_its_check() -> None:
    def halved(x: torch.Tensor, weight: torch.Tensor, eps: float, **_: object) -> torch.Tensor:
        return torch_flashinfer.rmsnorm(x, weight / 2, eps)

    wrong = standing_in(rmsnorm=halved)
    compared = kernel_checks(Recording(wrong), Recording(), torch.float32)
    checks = [check for _, compare in compared for check in compare()]
    failed = {check.name for check in checks if not check.passed}
    assert failed == {"norm", "norm_heads"}  # Gemma's are others


def test_a_control_passes_only_by_failing() -> None:
    assert Check("", found=1.0, allowed=0.1, control=True).passed
    assert not Check("", found=0.1, allowed=0.1, control=True).passed
    assert Check("", found=0.1, allowed=0.1).passed
    assert not Check("", found=float("nan"), allowed=0.1).passed


def test_what_pays_must_pay_for_all_that_is_larger() -> None:
    sdpa = {64: 1.0, 256: 2.0, 1024: 6.0, 4096: 40.0}
    assert pays_from({64: 2.0, 256: 1.9, 1024: 7.0, 4096: 30.0}, sdpa) == 4096
    assert pays_from({64: 2.0, 256: 1.9, 1024: 5.0, 4096: 30.0}, sdpa) == 256
    assert pays_from({64: 0.5, 256: 1.9, 1024: 5.0, 4096: 40.0}, sdpa) is None


def test_time_that_several_kernels_cover_counts_once() -> None:
    assert covered([(0, 4), (2, 5), (3, 4), (10, 15)]) == 10
    assert covered([(0, 1), (1, 2)]) == 2
    assert covered([]) == 0


def test_an_aim_that_is_missed_fails_the_run(tmp_path: Path) -> None:
    report = Report(tmp_path)
    report.begin("A card", "title", resume=False)
    report.add(Row("a", "1", "2", True))
    assert not report.failed
    report.add(Row("b", "1", "2", False))
    assert report.failed
    assert report.path.read_text().splitlines()[-1] == "| b | 1 | 2 | NO |"


def test_rows_of_a_part_that_was_cut_off_are_not_kept(tmp_path: Path) -> None:
    report = Report(tmp_path)
    report.begin("A card", "title", resume=False)
    report.add(Row("a", "1"))
    report.end("first")
    report.add(Row("b", "1"))
    again = Report(tmp_path)
    again.begin("A card", "title", resume=True)
    assert [row.what for row in again.rows] == ["a"]
    assert again.done == {"first"}


@pytest.mark.parametrize(
    ("shape", "billions"), [(QWEN2_VL_7B, 7.07), (QWEN2_VL_2B, 1.543), (TINY, None)]
)
def test_the_floor_counts_the_parameters_that_are_multiplied(
    shape: Shape, billions: float | None, tmp_path: Path
) -> None:
    with torch.device("meta"):
        folder = write_folder(shape, tmp_path)
        config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.Qwen2VLForConditionalGeneration(config)
    stack = model.model.language_model
    linear = sum(m.weight.numel() for m in stack.modules() if isinstance(m, torch.nn.Linear))
    assert shape.matmul_parameters == linear + model.lm_head.weight.numel()
    if billions is not None:
        assert shape.matmul_parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.head_dim in (64, 128)


def test_the_floor_is_weights_and_cache_at_the_bandwidth(tmp_path: Path) -> None:
    bench = ShapeBench(TINY, tmp_path, Recording(), Sizes(prompt=100, steps=20))
    expected = 2 * TINY.matmul_parameters + 4 * 110 * (2 * 2 * 1 * 64 * 2)
    assert bench.decode_floor(4, Limits(1e9, 1.0)) == pytest.approx(expected / 1e9)


def test_random_weights_keep_logits_sane(tmp_path: Path) -> None:
    model = random_model(str(write_folder(TINY, tmp_path)), torch.float32, torch.device("cpu"))
    logits = model(input_ids=torch.arange(20, 60)[None]).logits
    assert torch.isfinite(logits).all()
    assert 0.1 < logits.std() < 10
