"""Which CUDA card there is, or what is missing for one. Runs as a process of its own.

`python -m engine.device.cards` prints one JSON object. The server asks through it, so that the
server itself neither imports torch nor takes memory on the card.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.device.toolchain import missing_tools
from engine.errors import DeviceMissing

PROBE_SECONDS = 120
OLDEST = (8, 0)  # compute capability; FlashInfer's kernels use bfloat16 tensor cores

NO_DRIVER = (
    "no NVIDIA driver answers: install one (`apt install nvidia-driver-580-server`), or start the "
    "container with `--gpus all`"
)
NO_TORCH_BUILD = (
    "this torch is built without CUDA: `make install TORCH_INDEX= EXTRAS=cuda` in a checkout, or "
    "`pip install --force-reinstall --no-deps torch==2.13.0`, brings one"
)
NO_CARD = "the driver shows no card: see `nvidia-smi`, or start the container with `--gpus all`"
NO_FLASHINFER = (
    "FlashInfer is not installed: `make install TORCH_INDEX= EXTRAS=cuda` in a checkout, or "
    "`pip install flashinfer-python accelerate`"
)
NO_ACCELERATE = "accelerate, which loads weights onto a card, is missing: `pip install accelerate`"


@dataclass(slots=True, frozen=True)
class Card:
    """A CUDA device, as seen before anything of ours is on it."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int


def card() -> Card:
    """Ask for the card in a process of its own. Raises DeviceMissing, in one line."""
    command = [sys.executable, "-m", "engine.device.cards"]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(  # noqa: S603 - this file by this Python
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, cwd=root, check=False
        )
    except subprocess.TimeoutExpired:
        raise DeviceMissing(refusal("the driver does not answer: see `nvidia-smi`")) from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceMissing(refusal(f"asking the driver failed ({last})")) from None
    if "missing" in answer:
        raise DeviceMissing(refusal(answer["missing"]))
    answer["capability"] = tuple(answer["capability"])
    return Card(**answer)


def require_card() -> Card:
    """The card as this process sees it. Raises DeviceMissing, in one line."""
    missing = find_missing()
    if missing is not None:
        raise DeviceMissing(refusal(missing))
    import torch

    free, total = torch.cuda.mem_get_info()
    return Card(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), total, free)


def refusal(missing: str) -> str:
    return f"engine=cuda: {missing}; engine=cpu runs without a card"


def find_missing() -> str | None:
    """What stands between this machine and serving on a card, with the command that helps."""
    import torch

    if torch.version.cuda is None:
        return NO_TORCH_BUILD
    if not torch.cuda.is_available():
        return NO_CARD if driver_answers() else NO_DRIVER
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        return (
            f"{torch.cuda.get_device_name()} has compute capability {capability[0]}."
            f"{capability[1]}, {OLDEST[0]}.{OLDEST[1]} is needed"
        )
    return find_missing_tools()


def find_missing_tools() -> str | None:
    """FlashInfer, what it needs to have kernels, and what loads weights."""
    if importlib.util.find_spec("flashinfer") is None:
        return NO_FLASHINFER
    if importlib.util.find_spec("accelerate") is None:
        return NO_ACCELERATE
    return missing_tools()


def driver_answers() -> bool:
    """Whether `nvidia-smi` finds a driver, whatever torch thinks of it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    asked = subprocess.run([command, "-L"], capture_output=True, check=False)  # noqa: S603 - fixed
    return asked.returncode == 0


def main() -> int:
    missing = find_missing()
    print(json.dumps({"missing": missing} if missing else asdict(require_card())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
