"""A short run of the training, from nothing to a checkpoint, and on from there."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration

from tools.demo import train, training
from tools.demo.training import Run


def trained(out: Path, tokenizer: PreTrainedTokenizerBase, **told: object) -> Path:
    options = {
        "out": out, "minutes": 0.1, "batch": 2, "rate": 3e-3, "seed": 1, "processes": 1,
        "device": "cpu", "start": None, "see": 0.3, "tower_rate": 0.1,
    }  # fmt: skip
    arguments = argparse.Namespace(**(options | told))
    out.mkdir(parents=True)
    with training._meeting(0, arguments):
        train.train(Run(0, arguments, tokenizer, 0))
    return out / "checkpoint"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    return dict(model.state_dict())


@pytest.mark.usefixtures("one_font")
def test_a_run_writes_what_transformers_loads_and_another_goes_on_from_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "FITTED", 3)
    first = weights(trained(tmp_path / "first", tokenizer))
    written = tmp_path / "first" / "checkpoint"
    assert json.loads((written / "config.json").read_text())["dtype"] == "float32"
    stored = load_file(written / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    started = tmp_path / "started"
    shutil.copytree(written, started)
    shutil.copy(tmp_path / "first" / train.HEADS, started)
    stopped = {"see": 0.0, "rate": 0.0, "start": started}
    same = weights(trained(tmp_path / "same", tokenizer, minutes=0.02, **stopped))
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    decoder = stopped | {"rate": 3e-3, "tower_rate": 0.0}
    moved = weights(trained(tmp_path / "moved", tokenizer, **decoder))
    still = [torch.equal(value, moved[name]) for name, value in first.items() if "visual" in name]
    others = [torch.equal(value, moved[name]) for name, value in first.items() if "up_proj" in name]
    assert all(still)
    assert others
    assert not any(others)
    monkeypatch.setattr(train, "MOVES", 1)  # few steps fit in
    both = weights(trained(tmp_path / "both", tokenizer, **(decoder | {"tower_rate": 30.0})))
    assert not all(
        torch.equal(value, both[name]) for name, value in first.items() if "visual" in name
    )
