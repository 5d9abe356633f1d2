"""`make kernels`: really compile what some models take, without a card, and load each library.

Qwen2-VL-2B, Gemma 3-4B and the demo, by their config.json alone: heads of 64, 128 and 256, both
kinds of decoding, windows, spans that attend both ways. Takes a quarter of an hour on two cores,
and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_models import QWEN2_VL_2B, write_folder
from bench.reference import engine_options
from engine.kernels.architecture import parsed
from engine.kernels.compiler import Target, compile_modules, compiled
from engine.kernels.folder import KernelFolder
from engine.kernels.module import KernelModule
from engine.kernels.needed import needed
from engine.kernels.stock import capabilities
from engine.kernels.times import in_words, seconds
from engine.models.registry import family_for
from tests.conftest import CHECKOUT

GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "dtype": "bfloat16",
    "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_attention_heads": 16, "image_size": 896},
}

FUNCTIONS = {  # that FlashInfer calls on the engine's behalf, by how a module's name begins
    "page": ["append_paged_kv_cache"],
    "norm": ["rmsnorm", "fused_add_rmsnorm", "gemma_rmsnorm", "gemma_fused_add_rmsnorm"],
    "rope": ["apply_rope_pos_ids_cos_sin_cache"],
    "sampling": ["softmax", "sampling_from_probs", "top_k_renorm_probs", "top_p_renorm_probs"],
    "silu_and_mul": ["silu_and_mul"],
    "gelu_tanh_and_mul": ["gelu_tanh_and_mul"],
    "batch_decode_": ["plan", "run"],
    "batch_prefill_": ["plan", "paged_run"],
    "single_prefill_": ["run"],
    "blackwell_softmax": ["softmax"],
}
LOAD = """
import json, sys
import tvm_ffi
for library, functions in json.loads(sys.argv[1]).items():
    module = tvm_ffi.load_module(library)
    for function in functions:
        assert getattr(module, function) is not None, (library, function)
    assert not hasattr(module, "no_such_function")
"""


def models(root: Path) -> dict[str, Path]:
    """Folders with a config.json each, by the names of what they are."""
    gemma = root / "gemma"
    gemma.mkdir()
    (gemma / "config.json").write_text(json.dumps(GEMMA_3_4B))
    return {
        "demo": CHECKOUT / "recipes" / "demo",
        "Qwen2-VL-2B": write_folder(QWEN2_VL_2B, root / "qwen"),
        "Gemma 3-4B": gemma,
    }


def modules_of(folder: Path, architectures: tuple[str, ...]) -> tuple[KernelModule, ...]:
    options = engine_options(folder, dtype="bfloat16")
    return needed(family_for(folder), options, capabilities(architectures))


def load(libraries: Sequence[Path]) -> None:
    """In a process of its own: every library, and what is called of it by name."""
    wanted = {
        str(library): next(
            names for start, names in FUNCTIONS.items() if library.stem.startswith(start)
        )
        for library in libraries
    }
    subprocess.run([sys.executable, "-c", LOAD, json.dumps(wanted)], check=True)


def report(done: int, total: int, fraction: float) -> None:
    print(f"\r{done} of {total} ({fraction:.0%})", end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="9.0a")
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    target = Target(arguments.folder.resolve(), parsed(arguments.arch))
    folder, cores = KernelFolder(target.folder), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as root:
        for name, checkpoint in models(Path(root)).items():
            modules = modules_of(checkpoint, target.architectures)
            missing = [module for module in modules if module.name not in compiled(target)]
            print(f"{name}: {len(missing)} of {len(modules)}, {in_words(seconds(missing, cores))}")
            begun = time.monotonic()
            compile_modules(missing, target, cores, report)
            load([folder.library(module.name) for module in modules])
            print(f"\r{name}: all load, {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
