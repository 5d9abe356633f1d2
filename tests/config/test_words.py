"""What people type first: each is told as the line to type, in one line and with exit code 2."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from appliance.config.check import groups, keys
from appliance.config.compose import compose
from appliance.config.manual import explain
from appliance.config.recipes import recipe_files
from appliance.config.words import FOREIGN, check_words
from appliance.launcher import main

TOLD = [
    ("demo", "appliance recipe=demo"),
    ("serve demo", "appliance recipe=demo"),
    ("run smollm2 server.port=9", "appliance recipe=smollm2 server.port=9"),
    ("plan demo", "appliance task=plan recipe=demo"),
    ("Qwen/Qwen2-VL-7B-Instruct", "appliance model.path=Qwen/Qwen2-VL-7B-Instruct"),
    ("serve Qwen/X --port 8000", "appliance model.path=Qwen/X server.port=8000"),
    ("demo --port 8000", "appliance recipe=demo server.port=8000"),
    ("recipe=demo --port=8000", "appliance recipe=demo server.port=8000"),
    ("--port 8000", "appliance recipe=NAME server.port=8000"),
    ("--model demo", "appliance recipe=demo"),
    ("--model Qwen/X --revision main", "appliance model.path=Qwen/X model.revision=main"),
    (
        "demo --host 0.0.0.0 --max-model-len 512",
        "recipe=demo server.host=0.0.0.0 model.max_len=512",
    ),
    ("demo --tp 2", "appliance recipe=demo parallelism.tensor=2"),
    ("demo --device gpu", "appliance recipe=demo engine=cuda"),
    ("demo --served-model-name x", "appliance recipe=demo model.name=x"),
    ("demo --server.port 8000", "appliance recipe=demo server.port=8000"),
    ("demo --drain-seconds 5", "appliance recipe=demo server.drain_seconds=5"),
    ("demo --allowed-media-domains a.org", "recipe=demo 'media.allowed_domains=[a.org]'"),
    ("demo --allow-private", "appliance recipe=demo media.allow_private=true"),
    ("demo.yaml", "appliance recipe=demo"),
    ("mine/recipe/own.yaml", "appliance --config-dir mine recipe=own"),
    ("--config mine/own.yml", "appliance --config-dir mine recipe=own"),
    ("/models/tiny.gguf", "appliance model.path=/models/tiny.gguf"),
    ("dem", "appliance recipe=demo"),
    ("list", "type appliance\n"),
    ("version", "appliance --version"),
    ("--api-key topsecret demo", "appliance server.api_keys_file=FILE recipe=demo"),
    ("recipe=demo port=9000", "type server.port=9000"),
    ("recipe=demo engine=gpu", "did you mean 'cuda'?"),
    ("recipe=demo engine.device=gpu", "did you mean 'cuda'?"),
    ("recipe=demo model.dtype=bf16", "did you mean 'bfloat16'?"),
    ("recipe=demo logging=text", "did you mean 'human'?"),
    ("recipe=demo server=docker", "did you mean 'container'?"),
    ("recipe=demo rgba_background=0,128,0", "type 'media.image.rgba_background=[0,128,0]'"),
    ("recipe=demo media.image.rgba_background=0,1,2", "'media.image.rgba_background=[0,1,2]'"),
    ("recipe=demo allowed_domains=example.org", "type 'media.allowed_domains=[example.org]'"),
    ("recipe=demo media.allowed_domains=a.org", "type 'media.allowed_domains=[a.org]'"),
    ("recipe=demo media.allowed_domains=a.org,b.org", "'media.allowed_domains=[a.org,b.org]'"),
    ("recipe=demo cors_origins=https://a.org", "'server.cors_origins=[https://a.org]'"),
    ("recipe=demo api_keys=topsecret", "server.api_keys_file=FILE"),
    ("recipe=demo server.api_keys=topsecret", "server.api_keys_file=FILE"),
    ("recipe=demo +server.port=9000", "type server.port=9000 without a +"),
    ("recipe=demo limit=3", "(did you mean "),
    ("recipe=demo --package server", "--package goes with --cfg"),
    ("recipe=demo -p 8000", "server.port=8000"),
    ("recipe=demo --resolve", "--resolve goes with --cfg"),
    ("-sc", 'eval "$(appliance -sc install=bash)"'),
    ("-sc install=tcsh", "-sc takes install=bash"),
    ("help media.imag", "did you mean 'media.image'?"),
]


@pytest.mark.parametrize(("typed", "told"), TOLD, ids=[typed for typed, _ in TOLD])
def test_what_to_type_is_told(capsys: pytest.CaptureFixture[str], typed: str, told: str) -> None:
    assert main(shlex.split(typed)) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.startswith("appliance: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert "topsecret" not in said.err


@pytest.mark.parametrize(
    "typed",
    [typed for typed, told in TOLD if "type " in told or told.startswith("appliance recipe=demo")],
)
def test_what_is_told_is_understood(capsys: pytest.CaptureFixture[str], typed: str) -> None:
    main(shlex.split(typed))
    line = shlex.split(capsys.readouterr().err.partition("type ")[2])
    overrides = [word for word in line if "=" in word and "FILE" not in word]
    recipe = [] if any(word.startswith("recipe=") for word in overrides) else ["recipe=demo"]
    compose([*recipe, *overrides])


def test_flags_of_other_servers_lead_to_keys_that_there_are() -> None:
    known = {key.name for key in keys()} | {name for name, _ in groups()}
    assert set(FOREIGN.values()) <= known


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "recipe=demo",
        "recipe=demo server.port=9 --cfg job --package server",
        "--config-dir mine recipe=own -c job",
        "-cd mine",
        "--info searchpath",
        "-i",
        "--version",
        "-sc install=bash",
        "+server.tenants.a.concurrent=1 ~x",
        "--config-dir=mine recipe=own",
        "recipe=demo media.image.rgba_background=[0, 128, 0]",  # cut up by a shell
        "nonsense",
        "recipe",
        "--multirun",
        "--verson",
        "recipe=demo --unheard-of 3",
    ],
)
def test_what_is_in_our_words_or_in_nobodys_is_left_alone(typed: str) -> None:
    check_words(typed.split(), lambda: recipe_files([]).keys())


def test_the_page_has_forty_lines_with_meanings(
    capsys: pytest.CaptureFixture[str], mine: Path
) -> None:
    for typed in ("--help", "-h", "help", "recipe=demo --help"):
        assert main(typed.split()) == 0
        page = capsys.readouterr().out
        assert len(page.splitlines()) <= 40
        assert all(len(line) <= 100 for line in page.splitlines())
        assert all(f"  {name} " in page and meaning in page for name, meaning in groups())
        assert "engine=cpu|cuda" in page
    assert main(["--config-dir", str(mine), "--help"]) == 0
    assert "own, qwen2_vl, short" in capsys.readouterr().out


def test_a_group_a_key_and_a_recipe_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "media.image"]) == 0
    told = capsys.readouterr().out
    for key in keys():
        assert (f"  {key.name}\n" in told) == key.name.startswith("media.image.")
    assert "Red, green and blue that transparent pixels are composited on." in told
    assert "list of int, from 0 to 255, exactly 3 values; default [255, 255, 255]" in told
    assert main(["help", "port", "demo", "recipe=demo", "server.port=9"]) == 0
    told = capsys.readouterr().out
    assert "int, from 0 to 65535; default 8000; here 9" in told
    assert "A small Qwen2-VL of our own" in told
    assert main(["media.image", "--help"]) == 0
    assert "media.image.limit" in capsys.readouterr().out


def test_everything_can_be_asked_for() -> None:
    names = [name for name, _ in groups()] + [key.name for key in keys()]
    assert len(explain(names, [], []).split("\n\n")) >= len(names)


def test_help_shows_no_keys_of_clients(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "server", "recipe=demo", "server.api_keys=[topsecret]"]) == 0
    told = capsys.readouterr().out
    assert "topsecret" not in told
    assert "here [sha256:" in " ".join(told.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("appliance ", {"recipe=", "server.", "engine=", "help", "model."}),
        ("appliance recipe=", {"recipe=demo", "recipe=own"}),
        ("appliance recipe=d", {"recipe=demo"}),
        ("appliance recipe=demo media.red", {"media.redirects="}),
        ("appliance recipe=demo media.redirects=", {"media.redirects=same_host"}),
        ("appliance recipe=demo engine.fuse=", {"engine.fuse=true", "engine.fuse=false"}),
        ("appliance recipe=demo model.max_len=", {"model.max_len=2048", "model.max_len=null"}),
        ("appliance recipe=demo media.image.formats=[P", {"media.image.formats=[PNG]"}),
        ("appliance engine=", {"engine=cpu", "engine=cuda"}),
        ("appliance task=", {"task=serve", "task=plan"}),
        ("appliance media.image.", {"media.image.limit=", "media.image.rgba_background="}),
        ("appliance --", {"--help", "--cfg", "--config-dir", "--version"}),
        ("appliance recipe=demo --cfg ", {"job", "hydra", "all"}),
        ("appliance help media.im", {"media.image", "media.image.limit"}),
        ("appliance help dem", {"demo"}),
        ("appliance -sc ", {"install=bash", "install=fish"}),
        ("appliance recipe=demo 'half", set()),
        ("appliance nothing.of.that=", set()),
    ],
)
def test_tab_offers_names_values_and_flags(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mine: Path,
    line: str,
    offered: set[str],
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("APPLIANCE_RECIPES", str(mine))
    assert main(["-sc", "query=bash"]) == 0
    said = capsys.readouterr()
    found = set(said.out.split())
    assert offered <= found if offered else not found
    last = line.rpartition(" ")[2]
    assert all(one.startswith(last) for one in found)
    assert said.err == ""


def test_tab_completes_with_the_folder_that_the_line_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mine: Path
) -> None:
    monkeypatch.setenv("COMP_LINE", f"appliance --config-dir {mine} recipe=o")
    assert main(["-sc", "query=fish"]) == 0
    assert capsys.readouterr().out == "recipe=own\n"


@pytest.mark.parametrize("asked", ["logging=json", "logging.format=json"])
@pytest.mark.parametrize("typed", ["recipe=smolm2", "recipe=demo server.prot=1", "demo", "x=[1"])
def test_a_mistake_is_json_where_the_log_is(
    capsys: pytest.CaptureFixture[str], typed: str, asked: str
) -> None:
    assert main([*typed.split(), asked]) == 2
    said = capsys.readouterr()
    told = json.loads(said.err)
    assert said.err.count("\n") == 1
    assert (told["level"], said.out) == ("error", "")
    assert main([*typed.split(), "logging=human"]) == 2
    assert capsys.readouterr().err == f"appliance: {told['message']}\n".replace(
        asked, "logging=human"
    )
