"""Seal a folder of weights that ships beside a recipe.

    python -m tools.demo.seal                      recipes/demo and recipes/recipe/demo.yaml
    python -m tools.demo.seal mine/tiny mine/recipe/tiny.yaml

Writes the folder's manifest.json (SHA-256 of every file but `*.md` and hidden ones) and pins it in
the recipe's `model.path`. The recipe must have that line already: `path: "recipe://demo"`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from appliance.weights.source import sealed_files, write_manifest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MOST_BYTES = 16_000_000  # of the weights, so that they can ship in the wheel


def seal(folder: Path, recipe: Path, source: str) -> str:
    """Write the manifest and the recipe's digest; returns the digest.

    Raises ValueError for a folder or a recipe that cannot be sealed.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"'{folder}' has no config.json with safetensors")
    inner = [file.name for file in sealed_files(folder) if not file.is_file()]
    if inner:
        raise ValueError(f"'{folder}' has what is no file: {', '.join(inner)}")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > MOST_BYTES:
        raise ValueError(f"the weights have {size:,} bytes, more than {MOST_BYTES:,}")
    text = recipe.read_text(encoding="utf-8")
    path = rf'^(\s+path:\s*"?recipe://{re.escape(folder.name)})(#sha256=\w*)?("?)[ \t]*$'
    line = re.compile(path, re.MULTILINE)
    if len(line.findall(text)) != 1:
        raise ValueError(f"'{recipe}' has no line 'path: \"recipe://{folder.name}\"'")
    digest = write_manifest(folder, source)
    recipe.write_text(line.sub(rf"\g<1>#sha256={digest}\g<3>", text), encoding="utf-8")
    return digest


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m tools.demo.seal",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", default=RECIPES / "demo")
    parser.add_argument("recipe", type=Path, nargs="?", default=RECIPES / "recipe" / "demo.yaml")
    parser.add_argument("--source", default="tools/demo", help="what made it")
    options = parser.parse_args(arguments)
    try:
        digest = seal(options.folder.resolve(), options.recipe, options.source)
    except (OSError, ValueError) as fault:
        print(f"seal: {fault}", file=sys.stderr)
        return 2
    print(f"{options.folder}: {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
