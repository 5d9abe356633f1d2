"""`task=kernels`, and what plan and start make of compiled kernels, with a toolkit of scripts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from appliance.config.compose import compose
from appliance.config.errors import ConfigurationError
from appliance.kernels import command, kernel_options, settle_kernels
from appliance.planning import engine_options
from appliance.recipe import compose_recipe
from appliance.tasks import plan as plan_task
from engine.device.cards import Card
from engine.kernels.folder import KernelFolder
from engine.kernels.needed import needed
from engine.kernels.times import in_words, seconds
from engine.memory import plan as planning
from engine.models.registry import family_for
from tests.conftest import CHECKOUT, Launch
from tests.engine.kernels.toolkit import Toolkit

DEMO = CHECKOUT / "recipes" / "demo"
GIB = 1 << 30
CARD = Card("a card", (9, 0), 80 * GIB, 79 * GIB)
TASK = ("recipe=demo", "engine=cuda", "task=kernels")

pytest.importorskip("flashinfer", reason="FlashInfer is not installed")


@pytest.fixture
def toolkit(tmp_path: Path) -> Toolkit:
    return Toolkit(tmp_path)


def keys(tmp_path: Path, *more: str) -> list[str]:
    return [f"kernels.folder={tmp_path}/kernels", f"cache.folder={tmp_path}/cache", *more]


def test_a_recipes_kernels_are_compiled_ahead_of_time(
    launch: Launch, toolkit: Toolkit, tmp_path: Path
) -> None:
    asked = (*TASK, "kernels.arch=9.0a", *keys(tmp_path))
    ran = launch(*asked, **toolkit.environment)
    assert ran.returncode == 0, ran.stderr
    expected = rf"demo: all 8 kernels are in {tmp_path}/kernels \(.* B\), 8 of them compiled in \d"
    assert re.match(expected, ran.stdout)
    assert re.search(r'compiling, about .* fraction=0\.\d+ .* done="\d of 8 kernels"', ran.stderr)
    assert len(KernelFolder(tmp_path / "kernels").intact()) == 8
    before = len(toolkit.compiled)
    again = launch(*asked, **toolkit.environment)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("demo: all 8 kernels are in ")
    assert "compiled" not in again.stdout
    more = launch(*asked, "engine.kv_dtype=fp8", **toolkit.environment)
    assert "2 of them compiled" in more.stdout
    assert len(toolkit.compiled) > before
    assert len(KernelFolder(tmp_path / "kernels").intact()) == 10


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (("recipe=demo", "task=kernels"), r"task=kernels needs engine=cuda"),
        ((*TASK, "kernels.arch=9.0x"), r"'9\.0x' is no architecture"),
        ((*TASK, "kernels.arch="), r"kernels\.arch is empty"),
        ((*TASK, "model.dtype=float32", "kernels.arch=9.0a"), r"not in float32"),
        ((*TASK, "kernels.arch=9.0a", "kernels.folder=/proc/x"), r"set kernels\.folder to one"),
        (TASK, r"^engine=cuda: "),
        (("recipe=demo", "kernels.arch=9.0a"), r"kernels\.arch needs engine=cuda"),
    ],
)
def test_mistakes_are_one_line(
    launch: Launch, toolkit: Toolkit, told: tuple[str, ...], expected: str
) -> None:
    ran = launch(*told, **toolkit.environment)
    assert ran.returncode == 2, ran.stderr
    message = ran.stderr.removeprefix("appliance: ").splitlines()[-1].removeprefix("appliance: ")
    assert re.search(expected, message), message


def test_without_anything_to_compile_with_it_says_what_to_install(
    launch: Launch, toolkit: Toolkit
) -> None:
    (toolkit.home / "bin" / "nvcc").unlink()
    ran = launch(*TASK, "kernels.arch=9.0a", **toolkit.environment)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "finds no nvcc in" in ran.stderr


@pytest.mark.parametrize("task", ["serve", "plan"])
def test_a_folder_of_another_machine_is_refused_before_anything_else(
    launch: Launch, toolkit: Toolkit, tmp_path: Path, task: str
) -> None:
    made = launch(*TASK, "kernels.arch=9.0a", *keys(tmp_path), **toolkit.environment)
    assert made.returncode == 0, made.stderr
    manifest = tmp_path / "kernels" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "torch": "2.5.1"}))
    asked = ("recipe=demo", "engine=cuda", f"task={task}", *keys(tmp_path))
    ran = launch(*asked, **toolkit.environment)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "torch 2.5.1, CUDA 13.0), and this machine is sm 9.0a (FlashInfer" in ran.stderr
    [right] = re.findall("`appliance (.*)` makes the right ones", ran.stderr)
    again = launch(*right.split(), "kernels.arch=9.0a", **toolkit.environment)
    assert again.returncode == 0, again.stderr
    assert "task=kernels" in right
    assert "this machine" not in launch(*asked, **toolkit.environment).stderr


def test_jit_false_is_refused_before_the_server_listens(
    launch: Launch, toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = launch(*TASK, "kernels.arch=9.0a", *keys(tmp_path), **toolkit.environment)
    assert made.returncode == 0, made.stderr
    from appliance import preflight

    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "")
    monkeypatch.setattr(preflight, "check_device", lambda config: None)
    cuda = ("recipe=demo", "engine=cuda", "engine.jit=false", *keys(tmp_path))
    preflight.check(compose_recipe(cuda).config)
    eight_bits = compose_recipe([*cuda, "engine.kv_dtype=fp8"]).config
    with pytest.raises(ConfigurationError, match=r"_e4m3_.* engine\.jit=false: `app") as told:
        preflight.check(eight_bits)
    assert "engine.kv_dtype=fp8 task=kernels" in str(told.value)


def test_where_nothing_compiles_a_complete_folder_will_do(
    launch: Launch, toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image; what asks for a compiler is told that none is wanted."""
    made = launch(*TASK, "kernels.arch=9.0a", *keys(tmp_path), **toolkit.environment)
    assert made.returncode == 0, made.stderr
    config = compose_recipe(["recipe=demo", "engine=cuda", *keys(tmp_path)]).config
    for name, value in toolkit.environment.items():
        monkeypatch.setenv(name, value)
    settle_kernels(config)
    assert not os.environ["FLASHINFER_DISABLE_JIT"]  # it could still compile
    (toolkit.home / "bin" / "nvcc").unlink()
    settle_kernels(config)
    assert os.environ["FLASHINFER_DISABLE_JIT"]


def test_the_plan_counts_kernels_and_how_long_the_others_take(
    launch: Launch,
    toolkit: Toolkit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plan_task, "card", lambda: CARD)
    monkeypatch.setattr(planning, "card", lambda: pytest.fail("the card is asked once"))
    for name, value in toolkit.environment.items():
        monkeypatch.setenv(name, value)
    planned = ["recipe=demo", "engine=cuda", "task=plan", *keys(tmp_path, "engine.threads=2")]
    plan_task.run(compose_recipe(planned))
    shown = capsys.readouterr().out
    assert f"Kernels: 0 of 8 are compiled ({tmp_path}/kernels).\n  The first start, or `" in shown
    assert "takes about 5 min for\n    page\n    sampling\n" in shown
    spared = shown.index("A start is slower without, but does not wait for; `appliance")
    assert shown.index("_sm90") > spared > shown.index("batch_decode")
    (toolkit.home / "include" / "curand_kernel.h").rename(tmp_path / "header")
    plan_task.run(compose_recipe(planned))
    assert "A start refuses (FlashInfer compiles its kernels and" in capsys.readouterr().out
    (tmp_path / "header").rename(toolkit.home / "include" / "curand_kernel.h")
    plan_task.run(compose_recipe([*planned, "engine.jit=false"]))
    assert "A start refuses (engine.jit=false) for want of\n    page" in capsys.readouterr().out
    made = launch(*TASK, "kernels.arch=9.0a", *keys(tmp_path), **toolkit.environment)
    assert made.returncode == 0, made.stderr
    plan_task.run(compose_recipe(planned))
    assert f"Kernels: all 8 are compiled ({tmp_path}/kernels)." in capsys.readouterr().out
    plan_task.run(compose_recipe(["recipe=demo", "task=plan"]))
    assert "Kernels:" not in capsys.readouterr().out


def test_the_command_has_what_decides_which_kernels() -> None:
    said = ["recipe=demo", "engine=cuda", "engine.kv_dtype=fp8", "engine.vision_attention=auto"]
    told = command(compose_recipe([*said, "kernels.folder=/k", "kernels.arch=9.0a"]).config)
    assert told == (
        "appliance recipe=demo engine=cuda engine.kv_dtype=fp8 engine.vision_attention=auto "
        "task=kernels kernels.folder=/k 'kernels.arch=\"9.0a\"'"
    )
    assert command(compose(["model.path=/x"]).config).startswith("appliance model.path=/x engine=")


def test_kernels_are_kept_with_the_cache_unless_a_folder_is_named() -> None:
    kept = kernel_options(compose_recipe(["recipe=demo", "cache.folder=/c"]).config)
    assert (kept.folder, kept.named, kept.architectures) == ("/c/kernels", False, ())
    config = compose_recipe(
        ["recipe=demo", 'kernels.folder="~/k"', 'kernels.arch="9.0 8.0"']
    ).config
    given = kernel_options(config)
    assert (given.folder, given.named) == (str(Path("~/k").expanduser()), True)
    assert given.architectures == ("8.0", "9.0a")


def test_a_cpu_compiles_nothing() -> None:
    config = compose_recipe(["recipe=demo"]).config
    assert engine_options(config, DEMO).kernels is None


def test_more_cores_take_less_time_down_to_the_slowest_source() -> None:
    told = ["recipe=demo", "engine=cuda", "engine.prefill_attention=fa2"]
    config = compose_recipe(told).config
    modules = needed(family_for(DEMO), engine_options(config, DEMO), [(9, 0)])
    assert seconds([]) == 0
    assert seconds(modules, 2) == pytest.approx(310, abs=60)  # 344 s by two busy cores, 2026-11-28
    assert seconds(modules, 4) == seconds(modules, 2) / 2
    assert seconds(modules, 64) == 97  # sampling.cu
    told = [in_words(one) for one in (3, 44, 89, 90, 3600)]
    assert told == ["10 s", "40 s", "90 s", "2 min", "60 min"]
