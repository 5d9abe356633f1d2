from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.checkpoints import WRITERS
from tests.checkpoints import __doc__ as description


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=description, prog="python -m tests.checkpoints")
    parser.add_argument("family", choices=sorted(WRITERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args(arguments)
    print(WRITERS[options.family](options.folder, options.seed, options.dtype))
    return 0


if __name__ == "__main__":
    sys.exit(main())
