"""A recipe serves the checkpoints that it is written for, and what is off can be turned on."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from appliance.config.recipes import recipe_files
from appliance.planning import check_architecture, how_to_switch_on, switched_off
from appliance.preflight import check
from appliance.recipe import compose_recipe
from engine.errors import ModelUnsupported
from tests.conftest import Launch
from tests.serving.conftest import checkpoint, serving

__all__ = ["checkpoint"]

FAMILIES = {
    "llama": ["smollm2"],
    "qwen2_vl": ["demo", "qwen2_vl"],
    "llava": ["llava_1_5"],
    "gemma3": ["gemma_3"],
    "ultravox": ["ultravox"],
}
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "red-circle.png"


@pytest.mark.parametrize("recipe", sorted(recipe_files([])))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_refuses_a_checkpoint_of_another_kind(
    checkpoint: Callable[[str], Path], family: str, recipe: str
) -> None:
    folder = checkpoint(family)
    config = compose_recipe([f"recipe={recipe}", f"model.path={folder}"]).config
    if recipe in FAMILIES[family]:
        check_architecture(config, folder)
        return
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    with pytest.raises(ModelUnsupported) as told:
        check_architecture(config, folder)
    assert f"recipe={recipe} is for " in str(told.value)
    assert f"'{folder}' is {architecture}" in str(told.value)
    config.model.architectures = []
    check_architecture(config, folder)


def test_every_built_in_recipe_names_what_it_is_for() -> None:
    for name in recipe_files([]):
        assert compose_recipe([f"recipe={name}"]).config.model.architectures


def test_it_is_told_by_every_task_before_the_server_listens(
    launch: Launch, checkpoint: Callable[[str], Path]
) -> None:
    told = ["recipe=llava_1_5", f"model.path={checkpoint('qwen2_vl')}"]
    for task in ("plan", "serve"):
        ran = launch(*told, f"task={task}")
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
        assert "recipe=llava_1_5 is for LlavaForConditionalGeneration" in ran.stderr


def test_a_recipe_that_inherits_keeps_what_it_is_for(
    mine: Path, checkpoint: Callable[[str], Path]
) -> None:
    (mine / "recipe" / "again.yaml").write_text(
        f"# @package _global_\ndefaults: [llava_1_5, _self_]\n"
        f"model: {{path: {checkpoint('qwen2_vl')}}}\n"
    )
    config = compose_recipe(["recipe=again"], [str(mine)]).config
    with pytest.raises(Exception, match="recipe=again is for Llava"):
        check(config)


@pytest.mark.parametrize(
    ("family", "told", "off"),
    [
        ("llama", [], ()),
        ("qwen2_vl", [], ("image", "video")),
        ("qwen2_vl", ["media.image.limit=2"], ("video",)),
        ("qwen2_vl", ["media.image.limit=2", "media.video.limit=1"], ()),
        ("llava", [], ("image",)),
        ("gemma3", [], ("image",)),
        ("ultravox", [], ("audio",)),
        ("ultravox", ["media.audio.limit=1"], ()),
    ],
)
def test_what_a_checkpoint_could_take_is_known(
    checkpoint: Callable[[str], Path], family: str, told: list[str], off: tuple[str, ...]
) -> None:
    folder = checkpoint(family)
    config = compose_recipe([f"model.path={folder}", *told]).config
    assert switched_off(config, folder) == off


def test_the_keys_that_turn_media_on_are_told() -> None:
    told = how_to_switch_on(("image", "audio"))
    assert "takes images and audio too" in told
    assert "media.image.limit=1 media.audio.limit=1 turns them on" in told


def test_a_model_without_a_recipe_says_how_and_the_client_learns_whose_choice_it_is(
    checkpoint: Callable[[str], Path],
) -> None:
    url = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    with serving(f"model.path={checkpoint('qwen2_vl')}", "model.name=x", "engine.threads=1") as it:
        with pytest.raises(openai.BadRequestError) as refused:
            it.client.chat.completions.create(
                model="x", messages=[{"role": "user", "content": parts}]
            )
        assert "media.image.limit=1 media.video.limit=1 turns them on" in it.output
    assert "configuration has images off (media.image.limit=0)" in str(refused.value)


def test_a_plan_without_a_recipe_says_how(
    launch: Launch, checkpoint: Callable[[str], Path]
) -> None:
    path = f"model.path={checkpoint('llava')}"
    assert "media.image.limit=1 turns them on" in launch(path, "task=plan").stdout
    on = launch(path, "task=plan", "media.image.limit=1", "engine.kv_cache_gb=0.1").stdout
    assert "turns them on" not in on
