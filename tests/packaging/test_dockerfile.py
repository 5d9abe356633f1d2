"""The image: what hadolint (`make lint`) does not look at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.health import readable
from appliance.recipe import compose_recipe
from tests.attack.wire import until

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()
ARGUMENTS = {"BASE", "TORCH_INDEX", "EXTRAS", "RECIPE", "KERNELS_ARCH", "KERNELS_WITH"}
SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)


def instructions(text: str) -> list[tuple[str, str]]:
    """Name and argument of each, continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined.splitlines() if line]


def faults(text: str) -> set[str]:
    """What an image should not have, or lacks."""
    told = instructions(text)
    names = [name for name, _ in told]
    needed = ("USER", "HEALTHCHECK", "ENTRYPOINT", "LABEL", "VOLUME")
    wrong = {f"no {name}" for name in needed if name not in names}
    arguments = {text.partition("=")[0] for name, text in told if name == "ARG"}
    wrong |= {f"no argument {one}" for one in ARGUMENTS - arguments}
    for name, argument in told:
        match name:
            case "FROM" if not re.match(rf"({stages(told)})(?: AS \w+)?$", argument):
                wrong.add("a base that no build argument chooses")
            case "ARG" if argument.startswith("BASE") and not re.search(r":\d+\.\d+", argument):
                wrong.add("a base without a version")
            case "ADD":
                wrong.add("ADD")
            case "ARG" | "ENV" if SECRET.search(argument):
                wrong.add("a secret in the image")
            case "ENTRYPOINT" | "CMD" if not isinstance(_json(argument), list):
                wrong.add("a shell in front of the process")
            case "RUN" if "pip install" in argument and "--no-cache-dir" not in argument:
                wrong.add("pip's cache")
            case "RUN" if "pip install" in argument and "requirements." not in argument:
                wrong.add("versions that are not locked")
            case "HEALTHCHECK" if "appliance.health" not in argument:
                wrong.add("a health check of something else")
            case "ENV" if re.search(r"\sHOME=(?!/var/cache/appliance\s)", argument):
                wrong.add("a home that is not on the volume")
            case "COPY" if re.search(r"(^|\s)(\.|/|\*)\s", argument):
                wrong.add("all of the folder")
    if not any(name == "RUN" and "--require-hashes" in argument for name, argument in told):
        wrong.add("files that nobody knows")
    last = [argument for name, argument in told if name == "USER"][-1:]
    if last and not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", last[0]):
        wrong.add("a user who may be root")
    return wrong


def stages(told: list[tuple[str, str]]) -> str:
    """A pattern of what a stage may begin with: the chosen base, or another stage."""
    named = [argument.split(" AS ")[1] for name, argument in told if " AS " in argument]
    return "|".join([r"\$\{BASE\}", *named])


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_the_image_is_made_with_care() -> None:
    assert faults(DOCKERFILE) == set()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("FROM ${BASE} AS", "FROM python:latest AS", "a base that no build argument chooses"),
        ("FROM ${BASE}\n", "FROM python:3.12\n", "a base that no build argument chooses"),
        ("BASE=python:3.12-slim", "BASE=python:latest", "a base without a version"),
        ("ARG TORCH_INDEX", "ENV TORCH_INDEX", "no argument TORCH_INDEX"),
        ("ARG EXTRAS", "ENV EXTRAS", "no argument EXTRAS"),
        ("ARG KERNELS_WITH", "ENV KERNELS_WITH", "no argument KERNELS_WITH"),
        ("FROM build AS kernels", "FROM nvcc AS kernels", "a base that no build argument chooses"),
        ("appliance.health", "http.server", "a health check of something else"),
        (" HOME=/var/cache/appliance", " HOME=/home/appliance", "a home that is not on the volume"),
        ("LABEL org", "ENV org", "no LABEL"),
        ("COPY conf conf", "ADD https://example.org/conf conf", "ADD"),
        ("COPY conf conf", "COPY . .", "all of the folder"),
        ("ARG RECIPE=demo", "ARG HF_TOKEN", "a secret in the image"),
        ("RECIPE=${RECIPE}", "API_KEYS=abc", "a secret in the image"),
        ("USER 1000:1000", "USER root", "a user who may be root"),
        ("USER 1000:1000", "USER 0", "a user who may be root"),
        ("USER 1000:1000\n", "", "no USER"),
        ("HEALTHCHECK", "SHELL", "no HEALTHCHECK"),
        ('ENTRYPOINT ["sh"', "ENTRYPOINT appliance #", "a shell in front of the process"),
        ("pip install --no-cache-dir", "pip install", "pip's cache"),
        ('--constraint requirements.lock ".', '".', "versions that are not locked"),
        ("--require-hashes ", "", "files that nobody knows"),
    ],
)
def test_each_fault_is_found(old: str, new: str, fault: str) -> None:
    changed = DOCKERFILE.replace(old, new)
    assert changed != DOCKERFILE
    assert fault in faults(changed)


def test_what_is_copied_is_let_through_and_nothing_else() -> None:
    first, *rest = [
        line
        for line in (CHECKOUT / ".dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert first == "*"
    let_through = {line.removeprefix("!") for line in rest if line.startswith("!")}
    copied = {
        source
        for name, argument in instructions(DOCKERFILE)
        if name == "COPY" and "--from" not in argument
        for source in argument.split()[:-1]
    }
    assert let_through == copied
    assert all((CHECKOUT / name).exists() for name in copied)


@pytest.mark.parametrize(
    ("index", "reached", "ran"),
    [
        ("https://cpu.test/whl", True, ["--index-url https://cpu.test/whl", "torch"]),
        ("https://cpu.test/whl", False, ["--index-url https://cpu.test/whl", "torch"]),
        ("", True, ["torch"]),
    ],
)
def test_torch_comes_from_the_index_that_is_named_or_with_a_line_from_pips_own(
    tmp_path: Path, index: str, reached: bool, ran: list[str]
) -> None:
    [script] = [a for name, a in instructions(DOCKERFILE) if name == "RUN" and "TORCH_INDEX" in a]
    pip = tmp_path / "pip"
    pip.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\n'
        f'case "$*" in *index-url*) exit {0 if reached else 1};; esac\n'
    )
    pip.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TORCH_INDEX": index}
    done = subprocess.run(
        ["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    calls = (tmp_path / "ran").read_text().splitlines()
    assert len(calls) == len(ran)
    assert all(part in call for part, call in zip(ran, calls, strict=True))
    assert done.stderr.count("cannot be reached") == (0 if reached else 1)
    assert done.stderr.count("\n") == (0 if reached else 1)


@pytest.mark.parametrize("where", ["server.host=127.0.0.1", "server.host='::1'", "server.uds=UDS"])
def test_the_health_check_finds_the_server_wherever_it_listens(tmp_path: Path, where: str) -> None:
    where = where.replace("UDS", f"{tmp_path}/x.sock")
    command = [sys.executable, "-m", "appliance", "recipe=demo", "server=container", where]
    check = [sys.executable, "-m", "appliance.health"]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1
    with subprocess.Popen([*command, "server.port=0"], stderr=subprocess.DEVNULL) as server:
        try:
            assert until(lambda: subprocess.run(check, check=False).returncode == 0, 60)
            assert server.poll() is None
        finally:
            server.terminate()
    assert subprocess.run(check, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize(
    ("kernel", "host"),
    [
        ("00000000", "127.0.0.1"),
        ("0100007F", "127.0.0.1"),
        ("0A0200C0", "192.0.2.10"),
        ("0" * 32, "::1"),
        ("B80D0120000000000000000001000000", "2001:db8::1"),
    ],
)
def test_addresses_of_the_kernel_are_read(kernel: str, host: str) -> None:
    assert readable(kernel) == host


def kernel_scripts() -> list[str]:
    """What the stage for kernels runs."""
    return [
        argument
        for name, argument in instructions(DOCKERFILE)
        if "${KERNELS_ARCH}" in argument and name == "RUN"
    ]


def run_kernel_stage(tmp_path: Path, **given: str) -> list[str]:
    """Commands that the stage runs, written down instead; there is no C++ compiler."""
    log, bin = tmp_path / "ran", tmp_path / "bin"
    bin.mkdir()
    for name in ("apt-get", "pip", "appliance"):
        (bin / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n')
        (bin / name).chmod(0o755)
    for name in ("rm", "mkdir"):
        (bin / name).write_text("#!/bin/sh\n")
        (bin / name).chmod(0o755)
    environment = {
        "PATH": str(bin),
        "RECIPE": "demo",
        "KERNELS_ARCH": "",
        "KERNELS_WITH": "",
    } | given
    for script in kernel_scripts():
        subprocess.run(["/bin/sh", "-c", script], env=environment, check=True)
    return log.read_text().splitlines() if log.exists() else []


def test_an_image_without_kernels_compiles_nothing(tmp_path: Path) -> None:
    assert run_kernel_stage(tmp_path) == []


def test_the_stage_for_kernels_compiles_those_of_the_recipe(tmp_path: Path) -> None:
    keys = "engine.kv_dtype=fp8 engine.prefill_attention=auto"
    ran = run_kernel_stage(tmp_path, KERNELS_ARCH="8.9 9.0a", KERNELS_WITH=keys)
    assert ran[1] == "apt-get install --yes --no-install-recommends g++"
    assert ran[2].startswith("pip install ")
    assert ran[2].endswith(".[cuda-build]")
    assert ran[3:] == [
        f"appliance recipe=demo engine=cuda {keys} task=kernels kernels.arch='8.9 9.0a' "
        "kernels.folder=/opt/kernels"
    ]


def test_its_command_leaves_a_folder_that_the_image_starts_with(tmp_path: Path) -> None:
    """The command itself, with a toolkit of scripts; and what the entry point says afterwards."""
    pytest.importorskip("flashinfer", reason="FlashInfer is not installed")
    from engine.kernels.folder import KernelFolder
    from tests.engine.kernels.toolkit import Toolkit

    [script] = [one for one in kernel_scripts() if "appliance" in one]
    command = re.search(r"appliance recipe=.*?(?=; \})", script)
    assert command
    kernels = tmp_path / "kernels"
    text = command[0].replace("/opt/kernels", str(kernels)).replace("appliance", PYTHON, 1)
    environment = {**os.environ, **Toolkit(tmp_path).environment, "PYTHONPATH": str(CHECKOUT)}
    arguments = {"RECIPE": "demo", "KERNELS_ARCH": "8.9 9.0a", "KERNELS_WITH": ""}
    done = subprocess.run(
        ["/bin/sh", "-c", f"{text} cache.folder={tmp_path}/cache"],
        env=environment | arguments,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = KernelFolder(kernels).manifest()
    assert manifest is not None
    assert manifest.architectures == ("8.9", "9.0a")
    assert len(KernelFolder(kernels).intact()) == 8


PYTHON = f"{sys.executable} -m appliance"


@pytest.mark.parametrize("kernels", ["", "9.0a"])
def test_the_entry_point_names_the_kernels_that_the_image_has(tmp_path: Path, kernels: str) -> None:
    [entry] = [
        json.loads(argument) for name, argument in instructions(DOCKERFILE) if name == "ENTRYPOINT"
    ]
    (tmp_path / "appliance").write_text('#!/bin/sh\nfor one; do echo "$one"; done\n')
    (tmp_path / "appliance").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RECIPE": "demo",
        "KERNELS_ARCH": kernels,
    }
    done = subprocess.run(
        [*entry, "engine=cuda", "kernels.folder=/mine"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    assert ("kernels.folder=/opt/kernels" in said) == bool(kernels)
    assert "" not in said
    config = compose_recipe([one for one in said if one != "logging=json"]).config
    assert config.kernels.folder == "/mine"  # what somebody adds comes last


def test_what_the_image_holds_compiles_nothing() -> None:
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert "cuda-build" not in last
    assert "g++" not in last
    assert "--from=build /opt/appliance" in last  # whose packages are without the compiler's
