"""A checkpoint of a published model's sizes that the launcher serves: weights of chance."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from bench.gpu_models import Shape, random_model, write_folder

IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
TEXT_IDS = ("bos_token_id", "eos_token_id")
LARGEST_FILE = "4GB"


def write_checkpoint(shape: Shape, demo: Path, folder: Path, device: torch.device) -> Path:
    """The demo's texts, template and vocabulary around layers and tower of `shape`."""
    config = json.loads((demo / "config.json").read_text())
    ids = {name: config[name] for name in IDS}
    ids |= {name: config["text_config"][name] for name in TEXT_IDS}
    vocabulary = config["text_config"]["vocab_size"]
    write_folder(replace(shape, ids=ids, vocabulary=vocabulary), folder)
    model = random_model(str(folder), torch.bfloat16, device)
    written = (folder / "config.json").read_text()
    model.save_pretrained(folder, max_shard_size=LARGEST_FILE)
    (folder / "config.json").write_text(written)  # as it was: transformers adds to it
    of_weights = {"config.json", "model.safetensors", "manifest.json", "README.md"}
    for file in demo.iterdir():
        if file.name not in of_weights:
            shutil.copy(file, folder / file.name)
    return folder
