"""What is compiled ahead of time is what FlashInfer asks for, no more and no less."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from tests.conftest import CHECKOUT
from tests.gpu.asked import Case

pytest.importorskip("flashinfer", reason="FlashInfer is not installed")

LONG = {"max_tokens_per_step": 8192, "max_len": 8192, "max_sequences": 1}  # so that fa3 pays
CASES = {
    "Qwen2-VL": Case("qwen2_vl"),
    "Qwen2-VL, its tower too": Case("qwen2_vl", changes={"vision_attention": "flashinfer"}),
    "Qwen3 on another card": Case("qwen3", (10, 0)),
    "eight bits": Case("llama", changes={"kv_dtype": "float8_e4m3fn"}),
    "unfused": Case("llama", (8, 0), changes={"fuse": False}),
    "windows, capped": Case("gemma3_text", decoder={"attn_logit_softcapping": 50.0}),
    "windows, both ways": Case("gemma3", changes={"vision_attention": "auto"}),
    "Hopper": Case("llama", changes={"prefill_attention": "fa3", **LONG}),
    "Hopper's, not to be had": Case("llama", (8, 0), changes={"prefill_attention": "auto"}),
    "LLaVA": Case("llava"),
    "sound": Case("ultravox"),
}


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, list[str]]]:
    cases = json.dumps([asdict(case) for case in CASES.values()])
    command = [sys.executable, "-m", "tests.gpu.asked", cases]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return dict(zip(CASES, json.loads(ran.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_is_asked_for_is_what_is_listed(
    told: dict[str, dict[str, list[str]]], case: str
) -> None:
    assert sorted(told[case]["listed"]) == told[case]["asked"]


@pytest.mark.parametrize(
    ("case", "other"),
    [
        ("eight bits", "unfused"),
        ("windows, capped", "windows, both ways"),
        ("Qwen2-VL, its tower too", "Qwen2-VL"),
        ("Qwen3 on another card", "Qwen2-VL"),
        ("Hopper", "unfused"),
    ],
)
def test_the_list_of_another_case_would_not_do(
    told: dict[str, dict[str, list[str]]], case: str, other: str
) -> None:
    """Control: a setting that the list did not heed would be noticed."""
    assert set(told[case]["asked"]) - set(told[other]["listed"])
