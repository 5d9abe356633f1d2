from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models.gemma3 import Gemma3
from engine.models.llava import Llava
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_gemma3, write_llava, write_qwen2_vl


@pytest.fixture(scope="package")
def qwen2_vl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"))


@pytest.fixture(scope="package")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="package")
def gemma3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma3(tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="package")
def qwen2_vl(qwen2_vl_folder: Path) -> Qwen2VL:
    return Qwen2VL(qwen2_vl_folder)


@pytest.fixture(scope="package")
def llava(llava_folder: Path) -> Llava:
    return Llava(llava_folder)


@pytest.fixture(scope="package")
def gemma3(gemma3_folder: Path) -> Gemma3:
    return Gemma3(gemma3_folder)


@pytest.fixture(scope="package")
def qwen2_vl_model(qwen2_vl_folder: Path) -> Any:
    return _load(qwen2_vl_folder)


@pytest.fixture(scope="package")
def llava_model(llava_folder: Path) -> Any:
    return _load(llava_folder)


@pytest.fixture(scope="package")
def gemma3_model(gemma3_folder: Path) -> Any:
    return _load(gemma3_folder)


def _load(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
