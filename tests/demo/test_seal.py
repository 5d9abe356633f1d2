"""Sealing a folder of weights beside its recipe, as is done after training."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.compose import compose
from appliance.weights.source import WeightsError, resolve
from tests.checkpoints import write_llama
from tools.demo import seal

RECIPE = """# @package _global_
# A tiny one. See recipe://tiny beside it.
model:
  path: {path}
  max_len: 64 # short
"""
PATHS = ['"recipe://tiny"', "recipe://tiny", '"recipe://tiny#sha256=00ff"', '"recipe://tiny" ']


def write(root: Path, path: str = PATHS[0]) -> list[str]:
    write_llama(root / "tiny")
    (root / "recipe").mkdir()
    (root / "recipe" / "tiny.yaml").write_text(RECIPE.format(path=path))
    return [str(root / "tiny"), str(root / "recipe" / "tiny.yaml")]


def resolved(root: Path) -> Path:
    config = compose(["recipe=tiny", f"cache.folder={root}"], [str(root)]).config
    return resolve(config.model, config.cache)


@pytest.mark.parametrize("path", PATHS)
def test_sealed_weights_are_those_that_the_recipe_takes(tmp_path: Path, path: str) -> None:
    arguments = write(tmp_path, path)
    assert seal.main(arguments) == 0
    assert resolved(tmp_path) == tmp_path / "tiny"
    text = (tmp_path / "recipe" / "tiny.yaml").read_text()
    kept = [line for line in RECIPE.splitlines() if "path:" not in line]
    assert [line for line in text.splitlines() if "path:" not in line] == kept
    assert text.count("#sha256=") == 1
    (tmp_path / "tiny" / "model.safetensors").open("ab").write(b"\0")
    with pytest.raises(WeightsError):
        resolved(tmp_path)


def test_other_weights_are_sealed_anew(tmp_path: Path) -> None:
    arguments = write(tmp_path)
    assert seal.main(arguments) == 0
    first = (tmp_path / "recipe" / "tiny.yaml").read_text()
    assert seal.main(arguments) == 0
    assert (tmp_path / "recipe" / "tiny.yaml").read_text() == first
    write_llama(tmp_path / "tiny", seed=1)
    assert seal.main(arguments) == 0
    assert (tmp_path / "recipe" / "tiny.yaml").read_text() != first
    assert resolved(tmp_path) == tmp_path / "tiny"


def test_what_cannot_ship_is_not_sealed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = write(tmp_path)
    size = (tmp_path / "tiny" / "model.safetensors").stat().st_size
    monkeypatch.setattr(seal, "MOST_BYTES", size - 1)
    assert seal.main([folder, recipe]) == 2
    assert f"{size:,} bytes" in capsys.readouterr().err
    monkeypatch.setattr(seal, "MOST_BYTES", size)
    Path(recipe).write_text("model:\n  path: recipe://other\n")
    assert seal.main([folder, recipe]) == 2
    assert "has no line" in capsys.readouterr().err
    (tmp_path / "tiny" / "config.json").unlink()
    assert seal.main([folder, recipe]) == 2
    assert "has no config.json" in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "manifest.json").exists()
