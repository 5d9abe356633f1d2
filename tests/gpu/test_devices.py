"""Without a card, one line says what is missing and which command helps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.device import cards as devices
from engine.errors import DeviceMissing
from tests.conftest import CHECKOUT

without_card = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")


@without_card
def test_asking_for_the_card_in_a_process_of_its_own() -> None:
    with pytest.raises(DeviceMissing, match=r"^engine=cuda: .*engine=cpu runs") as raised:
        devices.card()
    assert "\n" not in str(raised.value)
    assert "pip install" in str(raised.value) or "nvidia" in str(raised.value).lower()


@pytest.mark.parametrize(
    ("build", "available", "driver", "expected"),
    [
        (None, False, True, "built without CUDA.*pip install"),
        ("13.0", False, False, "no NVIDIA driver.*apt install"),
        ("13.0", False, True, "shows no card.*nvidia-smi"),
        ("13.0", True, True, None),
    ],
)
def test_what_is_missing_is_named_in_order(
    build: str | None,
    available: bool,
    driver: bool,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(devices, "driver_answers", lambda: driver)
    monkeypatch.setattr(devices, "find_missing_tools", lambda: None)
    missing = devices.find_missing()
    if expected is None:
        assert missing is None
    else:
        assert missing is not None
        assert re.search(expected, missing)


def test_an_old_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert "Tesla T4 has compute capability 7.5, 8.0 is needed" in str(devices.find_missing())


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (set(), devices.NO_FLASHINFER),
        ({"flashinfer"}, devices.NO_ACCELERATE),
        ({"flashinfer", "accelerate"}, "a compiler"),
    ],
)
def test_flashinfer_and_what_it_needs(
    modules: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: object() for name in modules}
    monkeypatch.setattr(devices.importlib.util, "find_spec", found.get)
    monkeypatch.setattr(devices, "missing_tools", lambda: "a compiler")
    assert devices.find_missing_tools() == expected


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("", "asking the driver failed"),
        (json.dumps({"missing": "a driver"}), "engine=cuda: a driver; "),
    ],
)
def test_an_answer_that_is_no_card(
    printed: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, printed, "it broke")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DeviceMissing, match=expected):
        devices.card()


def test_a_card_that_is_there_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"name": "a card", "capability": [9, 0], "total_bytes": 80, "free_bytes": 79}

    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, "a warning\n" + json.dumps(described), "")

    monkeypatch.setattr(subprocess, "run", run)
    assert devices.card() == devices.Card("a card", (9, 0), 80, 79)


@without_card
def test_the_launcher_says_it_in_one_line(
    tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    arguments = [f"model.path={checkpoint('llama')}", "engine=cuda", "task=plan"]
    ran = subprocess.run(
        [sys.executable, "-m", "appliance", *arguments, "media.image.limit=0"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "engine=cuda" in ran.stderr or "FlashInfer" in ran.stderr
