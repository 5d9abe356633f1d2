"""The launcher as a process: one line and exit code 2 for mistakes, and no file left behind."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from appliance.launcher import main
from tests.conftest import Launch

MISTAKES = [
    (["recipe=smolm2"], "unknown recipe 'smolm2' (did you mean 'smollm2'?)"),
    (
        ["recipe=smollm2", "server.prot=1"],
        "unknown key 'server.prot' (did you mean 'server.port'?)",
    ),
    (["recipe=smollm2", "+server.prot=1"], "(did you mean 'server.port'?)"),
    (["recipe=smollm2", "media.imag.limit=1"], "(did you mean 'media.image.limit'?)"),
    (["recipe=smollm2", "image.limit=1"], "(did you mean 'media.image.limit'?)"),
    (["recipe=smollm2", "media.smell.limit=1"], "unknown key 'media.smell.limit'"),
    (["recipe=smollm2", "media.image={limt: 1}"], "(did you mean 'media.image.limit'?)"),
    (["recipe=smollm2", "server.port=many"], "server.port must be int"),
    (["recipe=smollm2", "server.port=70000"], "must be from 0 to 65535"),
    (["recipe=smollm2", "model.path=null"], "model.path must be str: null"),
    (["recipe=smollm2", "engine.fuse=perhaps"], "engine.fuse must be bool"),
    (["recipe=smollm2", "media.image.rgba_background=[1, 2]"], "exactly 3 values"),
    (["recipe=smollm2", "media.image.formats=[PGN]"], "(did you mean 'PNG'?)"),
    (["recipe=smollm2", "task=serv"], "(did you mean 'serve'?)"),
    (["recipe=smollm2", "engine.device=cudda"], "(did you mean 'cuda'?)"),
    (["recipe=smollm2", "logging=jsn"], "unknown logging 'jsn' (did you mean 'json'?)"),
    (["recipe=smollm2", "server={port: 1}"], "server takes the name of one option"),
    (["recipe=null"], "recipe takes the name of one option"),
    (["recipe=smollm2", "server.port=1,2"], "one value only"),
    (["recipe=smollm2", "~server.port"], "keys cannot be deleted"),
    (["recipe=smollm2", "hydra.run.dir=out"], "Hydra's own settings are fixed"),
    (["recipe=smollm2", "server.port=${oc.env:NOT_SET}"], "NOT_SET"),
    (["recipe=smollm2", "chat.template=none.jinja"], "no file 'none.jinja'"),
    (["server.port=1"], "model.path is not set; choose a recipe=NAME"),
    (["recipe"], "cannot read 'recipe'"),
    (["recipe=smollm2", "x=[1"], "cannot read 'x=[1'"),
    (["--verson"], "(did you mean '--version'?)"),
    (["--multirun", "recipe=smollm2"], "unrecognized arguments: --multirun"),
    (["--cfg", "jobs"], "invalid choice: 'jobs'"),
    (["--config-dir", "nowhere"], "no folder 'nowhere'"),
    (["recipe=smollm2", "server.prot=1", "--cfg", "job"], "(did you mean 'server.port'?)"),
    (["recipe=smolm2", "--help"], "(did you mean 'smollm2'?)"),
    (["model.path=/not/there", "task=plan"], "no such folder or file"),
    (["recipe=smollm2", "model.path="], "model.path is empty"),
    (["recipe=smollm2", "model.name="], "model.name is empty: give a text, or null"),
    (["recipe=smollm2", "server.host="], "server.host is empty"),
    (["recipe=smollm2", "media.allowed_domains=['']"], "media.allowed_domains is empty"),
    (["recipe=smollm2", "engine.kv_cache_gb=inf"], "must be a finite number"),
    (["recipe=smollm2", "media.image.timeout=nan"], "must be a finite number"),
    (["recipe=smollm2", "engine.threads=100000"], "must be from 1 to 1024"),
    (["recipe=smollm2", "server.cors_origins=[example.org]"], "'example.org' is no origin"),
    (["recipe=smollm2", "server.cors_origins=['https://a.org/page']"], "without a path"),
    (["recipe=smollm2", "server.limits.routes=[v1/models]"], "'v1/models' is no route"),
    (["recipe=smollm2", "server.root_path=models"], "server.root_path is 'models'"),
    (["recipe=smollm2", "server.root_path=/models/"], "without a slash at its end"),
    (["recipe=smollm2", "server.log_requests=all"], "must be one of none, meta, text"),
    (["recipe=smollm2", "media.image.rgba_background=red"], "must be list of int, from 0 to 255"),
    (["--info", "nonsense"], "invalid choice: 'nonsense'"),
]


@pytest.mark.parametrize(("argv", "expected"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(
    launch: Launch, argv: list[str], expected: str
) -> None:
    ran = launch(*argv)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert expected in ran.stderr
    assert ran.stderr.startswith("appliance: ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# @package _global_\nmodel:\n  pth: x\n", "recipe/bad: unknown key 'model.pth'"),
        ("# @package _global_\nserver:\n  port: many\n", "recipe/bad: server.port must be int"),
        ("# @package _global_\nmodel:\n path: [x\n", "bad.yaml, line"),
        ("# @package _global_\nmodel: 3\n", "recipe/bad: model is a group of keys"),
        ("model:\n  path: x\n", "has to begin with the line '# @package _global_'"),
        ("# @package _global_\ndefaults: [smolm2, _self_]\n", "(did you mean 'smollm2'?)"),
        ("# @package _global_\nmodel: {path: x/y}\nmedia: {smell: {limit: 1}}\n", "media.smell"),
        ("", "has to begin with the line '# @package _global_'"),
    ],
)
def test_a_mistake_in_a_recipe_names_the_recipe_and_the_key(
    launch: Launch, mine: Path, text: str, expected: str
) -> None:
    (mine / "recipe" / "bad.yaml").write_text(text)
    ran = launch("--config-dir", str(mine), "recipe=bad")
    assert ran.returncode == 2
    assert expected in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_without_arguments_recipes_are_listed_with_one_line_each(
    launch: Launch, mine: Path
) -> None:
    ran = launch()
    assert ran.returncode == 0
    assert re.search(r"^  smollm2 +SmolLM2-135M-Instruct, ", ran.stdout, re.MULTILINE)
    assert "Mine instead." not in ran.stdout
    for listed in (launch("--config-dir", str(mine)), launch(APPLIANCE_RECIPES=str(mine))):
        assert re.search(r"^  own +A recipe of my own\.$", listed.stdout, re.MULTILINE)
        assert re.search(r"^  qwen2_vl +Mine instead\.$", listed.stdout, re.MULTILINE)
        assert "  smollm2  " in listed.stdout


def test_cfg_job_prints_yaml_with_overrides_in_it(launch: Launch) -> None:
    ran = launch("recipe=smollm2", "--cfg", "job", "server.port=9")
    printed = yaml.safe_load(ran.stdout)
    assert ran.returncode == 0
    assert printed["recipe"] == "smollm2"
    assert printed["server"]["port"] == 9
    part = launch("recipe=smollm2", "--cfg", "job", "--package", "server", "server.port=9")
    assert yaml.safe_load(part.stdout) == printed["server"]


def test_the_folder_of_recipes_counts_for_all_flags(launch: Launch, mine: Path) -> None:
    ran = launch("--config-dir", str(mine), "recipe=own", "--help")
    assert ran.returncode == 0
    assert "demo, gemma_3, llava_1_5, minilm, own, qwen2_vl, short, smollm2, ultravox" in ran.stdout
    assert f"file://{mine}" in launch("--config-dir", str(mine), "--info", "searchpath").stdout


def test_tab_completes_recipes_and_keys(launch: Launch, mine: Path) -> None:
    assert "complete " in launch("-sc", "install=bash").stdout
    environment = {"COMP_LINE": "appliance recipe=", "APPLIANCE_RECIPES": str(mine)}
    offered = launch("-sc", "query=bash", **environment).stdout.split()
    assert {"recipe=smollm2", "recipe=own"} <= set(offered)
    keys = launch("-sc", "query=bash", COMP_LINE="appliance recipe=smollm2 engine.").stdout.split()
    assert "engine.page_size=" in keys


def test_a_folder_that_would_replace_the_defaults_is_refused(launch: Launch, mine: Path) -> None:
    (mine / "appliance.yaml").write_text("task: plan\n")
    ran = launch("--config-dir", str(mine), "recipe=own")
    assert ran.returncode == 2
    assert "would replace the built-in defaults" in ran.stderr


def test_composing_does_not_import_the_model_libraries(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    checkout = str(Path(__file__).resolve().parents[2])
    ran = launch("recipe=smollm2", "--cfg", "job", PYTHONPATH=f"{tmp_path}{os.pathsep}{checkout}")
    assert ran.returncode == 0


HEAD = "# @package _global_\n"
FOLDERS = [
    ({"recipe/a.yaml": f"{HEAD}defaults: [a, _self_]"}, "a.yaml inherits from itself: a > a ("),
    (
        {
            "recipe/a.yaml": f"{HEAD}defaults: [b, _self_]",
            "recipe/b.yaml": f"{HEAD}defaults: [_self_, c]",
            "recipe/c.yaml": f"{HEAD}defaults: [b]",
        },
        "inherits from itself: b > c > b",
    ),
    ({"recipe/a.yml": HEAD}, "a.yml' has to be called a.yaml"),
    ({"a.yaml": HEAD}, "holds a.yaml itself: recipes belong in '"),
    ({"recipes/a.yaml": HEAD}, "holds 'recipes': the folder has to be called 'recipe'"),
    ({"readme.txt": "x"}, "holds no recipe/NAME.yaml"),
    ({"recipe/a.yaml": f"{HEAD}- x"}, "a recipe holds keys and values, not a list"),
    ({"recipe/a.yaml": f"{HEAD}\tmodel: x"}, "a.yaml, line 2: not valid YAML"),
    ({"recipe/a.yaml": f"{HEAD}model: {{path: x, path: y}}"}, "found duplicate key path"),
    ({"recipe/a.yaml": "\udcff\udcfe"}, "a.yaml' is not text in UTF-8"),
    ({"recipe/a.yaml/b": ""}, "unknown recipe 'a'"),
    ({"recipe/a.yaml": f"{HEAD}defaults: [server: nowhere]"}, "no configuration"),
    ({"recipe/a.yaml": f"{HEAD}media: {{allowed_domains: a.org}}"}, "a list stands in brackets"),
    ({"recipe/a.yaml": f"{HEAD}model: {{path: '${{model.name}}', name: '${{model.path}}'}}"}, ""),
]


@pytest.mark.parametrize(("files", "expected"), FOLDERS, ids=[told for _, told in FOLDERS])
def test_a_folder_that_is_not_right_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, errors="surrogateescape")
    assert main(["--config-dir", str(tmp_path), "recipe=a", "--cfg", "job"]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.startswith("appliance: ")
    assert said.count("\n") == 1


def test_the_folder_of_recipes_itself_is_one_too_deep(
    capsys: pytest.CaptureFixture[str], mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--config-dir", str(mine / "recipe"), "recipe=own"]) == 2
    assert f"give the one above it, '{mine}'" in capsys.readouterr().err
    monkeypatch.setenv("APPLIANCE_RECIPES", str(mine / "recipe"))  # of a container's volume
    assert main([]) == 2
    assert f"give the one above it, '{mine}'" in capsys.readouterr().err


def test_an_empty_volume_of_recipes_is_fine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_RECIPES", str(tmp_path))
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out
