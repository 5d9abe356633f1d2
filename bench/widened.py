"""A checkpoint of a GGUF file's integers as one of elements, for peers and to compare with.

    python -m bench.widened FOLDER OUT [--dtype bfloat16]

FOLDER is what the launcher leaves in `cache.folder`; any program that reads safetensors reads OUT.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.memory.checkpoint import tensor_files
from engine.native.block_weight import BlockWeight, by_one_thread
from engine.native.blocks import kind_of

MANIFEST = "manifest.json"  # of the other files


def write_widened(folder: Path, out: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint's texts and its weights, all of one type."""
    out.mkdir(parents=True, exist_ok=True)
    files = tensor_files(folder)
    tensors = {}
    for name, file in files.items():
        with safe_open(file, framework="pt") as opened:
            tensor, kind = opened.get_tensor(name), kind_of(name)
        if kind is None:
            tensors[name] = tensor.to(dtype)
        else:
            with by_one_thread():
                tensors[name.removesuffix(f".{kind}")] = BlockWeight(kind, tensor, dtype).whole()
    for text in folder.iterdir():
        if text not in files.values() and text.name != MANIFEST and text.is_file():
            shutil.copyfile(text, out / text.name)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.widened", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("folder", type=Path, help="with config.json and safetensors")
    parser.add_argument("out", type=Path, help="another folder, made if need be")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    given = parser.parse_args(argv)
    if given.out.resolve() == given.folder.resolve():
        parser.error("OUT must be another folder")
    write_widened(given.folder, given.out, getattr(torch, given.dtype))
    return 0


if __name__ == "__main__":
    sys.exit(main())
