"""Composition in one process: what wins, what a recipe may say, what the digest tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.check import bounds, keys
from appliance.config.compose import compose, compose_node
from appliance.config.errors import ConfigurationError
from appliance.config.recipes import headline, recipe_files


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults() -> None:
    defaults = compose(["model.path=x/y"]).config
    recipe = compose(["recipe=qwen2_vl"]).config
    told = compose(["recipe=qwen2_vl", "media.image.limit=3"]).config
    assert defaults.media.image.limit == 0
    assert recipe.media.image.limit > 3
    assert told.media.image.limit == 3


def test_every_key_has_a_value_in_yaml_except_the_weights() -> None:
    with pytest.raises(ConfigurationError, match=r"^model\.path is not set"):
        compose([])
    compose(["model.path=x/y"])


@pytest.mark.parametrize("name", sorted(recipe_files([])))
def test_built_in_recipes_compose_and_explain_themselves(name: str) -> None:
    config = compose([f"recipe={name}"]).config
    text = recipe_files([])[name].read_text()
    assert config.recipe == config.model.name == name
    assert headline(recipe_files([])[name])
    assert f"appliance recipe={name}" in text
    assert "# Memory:" in text
    assert "curl " in text
    assert f'"model": "{name}"' in text or f"-F model={name} " in text


def test_a_users_recipe_wins_over_a_built_in_one_of_its_name(mine: Path) -> None:
    assert compose(["recipe=qwen2_vl"], [str(mine)]).config.model.path == "/somewhere/qwen"
    assert compose(["recipe=qwen2_vl"]).config.model.path == "Qwen/Qwen2-VL-2B-Instruct"


def test_a_users_recipe_inherits_from_a_built_in_one(mine: Path) -> None:
    built_in = compose(["recipe=smollm2"]).config
    inherited = compose(["recipe=short"], [str(mine)]).config
    assert inherited.model.path == built_in.model.path
    assert (built_in.model.max_len, inherited.model.max_len) == (None, 99)


def test_the_first_of_several_folders_wins(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "recipe"
    other.mkdir(parents=True)
    (other / "own.yaml").write_text("# @package _global_\nmodel:\n  path: /other\n")
    monkeypatch.setenv("APPLIANCE_RECIPES", str(mine))
    assert compose(["recipe=own"]).config.model.path == "/somewhere/own"
    assert compose(["recipe=own"], [str(other.parent)]).config.model.path == "/other"
    assert compose(["recipe=short"], [str(other.parent)]).config.model.max_len == 99


def test_a_users_option_of_a_group_adds_to_and_replaces_built_in_ones(mine: Path) -> None:
    (mine / "server").mkdir()
    (mine / "server" / "office.yaml").write_text("defaults: [local, _self_]\nport: 9\n")
    (mine / "logging").mkdir()
    (mine / "logging" / "json.yaml").write_text("format: json\nlevel: error\n")
    told = ["recipe=own", "server=office", "logging=json"]
    config = compose(told, [str(mine)]).config
    assert (config.server.port, config.server.host) == (9, "127.0.0.1")
    assert config.logging.level == "error"


def test_what_cfg_job_prints_is_a_recipe_that_composes_to_the_same(tmp_path: Path) -> None:
    first = compose(["recipe=qwen2_vl", "server.port=9", "model.dtype=float32"])
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "frozen.yaml").write_text(first.yaml)
    again = compose(["recipe=frozen", "model.name=qwen2_vl"], [str(tmp_path)])
    assert again.config.recipe == "frozen"
    again.config.recipe = first.config.recipe
    assert again.config == first.config
    assert compose(["recipe=frozen"], [str(tmp_path)]).digest == first.digest


def test_the_digest_changes_with_behaviour_and_with_nothing_else(tmp_path: Path) -> None:
    base = compose(["recipe=smollm2"]).digest
    assert len(base) == 12
    assert compose(["recipe=smollm2", "task=plan"]).digest == base
    assert compose(["recipe=smollm2", "server.api_keys=[secret]"]).digest == base
    assert compose(["recipe=smollm2", "engine.page_size=32"]).digest != base
    template = tmp_path / "own.jinja"
    template.write_text("one")
    told = ["recipe=smollm2", f"chat.template={template}"]
    one = compose(told).digest
    template.write_text("two")
    assert compose(told).digest != one


def test_a_template_is_found_beside_the_recipes(mine: Path) -> None:
    (mine / "templates").mkdir()
    (mine / "templates" / "terse.jinja").write_text("hello")
    config = compose(["recipe=own", "chat.template=terse.jinja"], [str(mine)]).config
    assert config.chat.template == str(mine / "templates" / "terse.jinja")
    with pytest.raises(ConfigurationError, match=r"did you mean 'terse.jinja'"):
        compose(["recipe=own", "chat.template=tense.jinja"], [str(mine)])


def test_secrets_of_the_environment_are_used_but_not_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEY", "s3cret")
    composed = compose(["recipe=smollm2", "server.api_keys=['${oc.env:KEY}']"])
    assert composed.config.server.api_keys == ["s3cret"]
    assert "s3cret" not in composed.yaml


def test_every_key_is_described_in_one_line_and_its_default_is_in_range() -> None:
    compose(["model.path=x/y"])
    for key in keys():
        assert key.help.endswith(".")
        assert "\n" not in key.help
        assert len(key.help) > 15, key.name


def test_bounds_are_told_as_they_are_checked() -> None:
    ranges = {key.name: bounds(key.metadata) for key in keys()}
    assert ranges["server.port"] == "from 0 to 65535"
    for name, value, fine in [
        ("server.port", 65536, False),
        ("server.port", 65535, True),
        ("engine.threads", 0, False),
        ("engine.kv_cache_gb", 0, False),
        ("engine.kv_cache_gb", 0.001, True),
        ("engine.page_size", 1025, False),
    ]:
        told = ["model.path=x/y", f"{name}={value}"]
        if fine:
            compose(told)
            continue
        with pytest.raises(ConfigurationError, match=f"{name} is .*, must be {ranges[name]}"):
            compose(told)


def test_nothing_of_a_recipe_is_instantiated(mine: Path) -> None:
    (mine / "recipe" / "evil.yaml").write_text(
        "# @package _global_\nmodel:\n  _target_: os.system\n  path: x/y\n"
    )
    with pytest.raises(ConfigurationError, match=r"unknown key 'model\._target_'"):
        compose_node(["recipe=evil"], [mine])
