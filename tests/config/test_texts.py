"""A text that looks like a number, a date or a truth value is refused, or kept as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.compose import compose
from appliance.config.errors import ConfigurationError

ODD = {  # what YAML 1.1 or OmegaConf would make of it
    "12e4567": "a number",
    "1e10": "a number",
    "0042": "a number",
    "0123456": "a number",
    "7": "a number",
    "-3": "a number",
    "1_000": "a number",
    "1.10": "a number",
    "0x1f": "a number",
    ".5": "a number",
    "190:20:30": "a number",
    ".inf": "a number",
    "true": "a truth value",
    "no": "a truth value",
    "On": "a truth value",
    "2024-01-31": "a date",
}
PLAIN = ["main", "v1.2.3", "1.2.3", "12abc", "abc12e4567", "a1b2c3d4", "refs/pr/3", "08x", "e10"]


def recipe(mine: Path, text: str) -> Path:
    file = mine / "recipe" / "odd.yaml"
    file.write_text(f"# @package _global_\n{text}")
    return file


@pytest.mark.parametrize(("text", "kind"), ODD.items())
def test_it_is_refused_without_quotes_in_a_recipe_and_on_the_command_line(
    mine: Path, text: str, kind: str
) -> None:
    file = recipe(mine, f"model:\n  path: x/y\n  revision: {text}\n")
    with pytest.raises(ConfigurationError) as told:
        compose(["recipe=odd"], [str(mine)])
    what = f"model.revision takes text and {text} is read as {kind}: write it in quotes"
    assert str(told.value) == f'{file}, line 4: {what}, "{text}"'
    with pytest.raises(ConfigurationError) as told:
        compose(["model.path=x/y", f"model.revision={text}"])
    assert str(told.value) == f"{what}, 'model.revision=\"{text}\"'"


@pytest.mark.parametrize("text", [*ODD, *PLAIN])
def test_in_quotes_it_is_kept_to_the_letter(mine: Path, text: str) -> None:
    recipe(mine, f"model:\n  path: x/y\n  revision: '{text}'\n")
    assert compose(["recipe=odd"], [str(mine)]).config.model.revision == text
    told = compose(["model.path=x/y", f'model.revision="{text}"'])
    assert told.config.model.revision == text
    assert compose(["recipe=odd"], [str(mine)]).config.model.revision == text
    (mine / "recipe" / "again.yaml").write_text(told.yaml)
    assert compose(["recipe=again"], [str(mine)]).config.model.revision == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_needs_no_quotes(mine: Path, text: str) -> None:
    recipe(mine, f"model:\n  path: x/y\n  revision: {text}\n")
    assert compose(["recipe=odd"], [str(mine)]).config.model.revision == text
    assert compose(["model.path=x/y", f"model.revision={text}"]).config.model.revision == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("media: {allowed_domains: [example.org, 1.5]}", "media.allowed_domains"),
        ("chat:\n  template_kwargs:\n    - on", "chat.template_kwargs"),
        ("model: {path: x/y, name: 2024-01-31}", "model.name"),
        ("server: {uds: 0777}", "server.uds"),
        ("sampling: &odd {revision: 1e5}\nmodel: *odd", "model.revision"),
        ("x: &odd {revision: 1e5}\nmodel:\n  <<: *odd", "model.revision"),
        ("defaults: [below, _self_]", "model.revision"),
    ],
)
def test_it_is_found_wherever_a_recipe_says_it(mine: Path, text: str, name: str) -> None:
    recipe(mine, text)
    (mine / "recipe" / "below.yaml").write_text("# @package _global_\nmodel:\n  revision: 0042\n")
    with pytest.raises(ConfigurationError, match=f"{name} takes text .*write it in quotes"):
        compose(["recipe=odd"], [str(mine)])


def test_it_is_found_in_an_option_of_a_group(mine: Path) -> None:
    (mine / "server").mkdir()
    (mine / "server" / "office.yaml").write_text("defaults: [local]\nuds: 010\n")
    with pytest.raises(ConfigurationError, match=r"office\.yaml, line 2: server\.uds takes text"):
        compose(["recipe=own", "server=office"], [str(mine)])
    compose(["recipe=own"], [str(mine)])  # which nobody chose


@pytest.mark.parametrize(
    "told",
    [
        "server.api_keys=[abcd, 77e88]",
        "server.api_keys=[0042]",
        "server.api_keys=['abcd', 1234567890]",
        "server.api_keys=[1e9]",
    ],
)
def test_keys_of_clients_are_refused_without_being_quoted(told: str) -> None:
    with pytest.raises(ConfigurationError, match="write it in quotes") as fault:
        compose(["model.path=x/y", told])
    assert all(one not in str(fault.value) for one in ("77e88", "0042", "1e9", "1234567890"))


def test_keys_of_clients_in_a_recipe_are_refused_without_being_quoted(mine: Path) -> None:
    recipe(mine, "server:\n  tenants:\n    one:\n      keys: [0042042]\n")
    with pytest.raises(ConfigurationError, match=r"line 5: .*write it in quotes") as fault:
        compose(["recipe=odd"], [str(mine)])
    assert "0042042" not in str(fault.value)


def test_a_number_that_a_variable_is_decoded_to_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["model.path=x/y", "server.api_keys='${oc.decode:${oc.env:KEYS}}'"]
    monkeypatch.setenv("KEYS", "[12e4567]")
    with pytest.raises(ConfigurationError, match=r"server\.api_keys takes text") as fault:
        compose(told)
    assert "12e4567" not in str(fault.value)
    monkeypatch.setenv("KEYS", "['12e4567', abcdef]")
    assert compose(told).config.server.api_keys == ["12e4567", "abcdef"]


def test_a_name_of_a_tenant_is_text_too(mine: Path) -> None:
    recipe(mine, "server:\n  tenants:\n    0042:\n      keys: [abc]\n")
    with pytest.raises(ConfigurationError, match=r"line 4: .*write it in quotes"):
        compose(["recipe=odd"], [str(mine)])


def test_a_choice_is_told_in_place_of_quotes(mine: Path) -> None:
    recipe(mine, "media: {redirects: off}")
    with pytest.raises(ConfigurationError, match="must be one of deny, same_host"):
        compose(["recipe=odd"], [str(mine)])


@pytest.mark.parametrize("text", ["0777", "010", "0_7"])
def test_a_number_is_not_read_as_octal(mine: Path, text: str) -> None:
    recipe(mine, f"model: {{path: x/y}}\nserver: {{port: {text}}}")
    with pytest.raises(ConfigurationError, match=r"server\.port: .* read as octal"):
        compose(["recipe=odd"], [str(mine)])


def test_numbers_and_truth_values_stay_what_they_are(mine: Path) -> None:
    recipe(
        mine,
        "model: {path: x/y, revision: null, max_len: 1_000}\n"
        "engine: {kv_cache_gb: 1e1, fuse: off}\nmedia: {image: {rgba_background: [0, 128, 0]}}\n",
    )
    config = compose(["recipe=odd", "server.port=9_000"], [str(mine)]).config
    assert (config.model.max_len, config.engine.kv_cache_gb, config.engine.fuse) == (
        1000,
        10,
        False,
    )
    assert (config.model.revision, config.server.port) == (None, 9000)
    assert config.media.image.rgba_background == [0, 128, 0]
