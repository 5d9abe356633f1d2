"""The image: what hadolint (`make lint`) does not look at."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()
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
    wrong = {f"no {name}" for name in ("USER", "HEALTHCHECK", "ENTRYPOINT") if name not in names}
    for name, argument in told:
        match name:
            case "FROM" if not re.match(r"[\w./-]+:\$\{PYTHON\}(?: AS \w+)?$", argument):
                wrong.add("a base that no build argument chooses")
            case "ARG" if argument.startswith("PYTHON") and not re.search(r"=\d\.\d+", argument):
                wrong.add("a base without a version")
            case "ADD":
                wrong.add("ADD")
            case "ARG" | "ENV" if SECRET.search(argument):
                wrong.add("a secret in the image")
            case "ENTRYPOINT" | "CMD" if not isinstance(_json(argument), list):
                wrong.add("a shell in front of the process")
            case "RUN" if "pip install" in argument and "--no-cache-dir" not in argument:
                wrong.add("pip's cache")
            case "RUN" if "pip install" in argument and "requirements.lock" not in argument:
                wrong.add("versions that are not locked")
            case "COPY" if re.search(r"(^|\s)(\.|/|\*)\s", argument):
                wrong.add("all of the folder")
    last = [argument for name, argument in told if name == "USER"][-1:]
    if last and not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", last[0]):
        wrong.add("a user who may be root")
    return wrong


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
        ("python:${PYTHON} AS", "python:latest AS", "a base that no build argument chooses"),
        ("python:${PYTHON}\n", "python:3.12\n", "a base that no build argument chooses"),
        ("PYTHON=3.12-slim", "PYTHON=latest", "a base without a version"),
        ("COPY conf conf", "ADD https://example.org/conf conf", "ADD"),
        ("COPY conf conf", "COPY . .", "all of the folder"),
        ("ARG RECIPE=demo", "ARG HF_TOKEN", "a secret in the image"),
        ("RECIPE=${RECIPE}", "API_KEYS=abc", "a secret in the image"),
        ("USER 1000:1000", "USER root", "a user who may be root"),
        ("USER 1000:1000", "USER 0", "a user who may be root"),
        ("USER 1000:1000\n", "", "no USER"),
        ("HEALTHCHECK", "LABEL", "no HEALTHCHECK"),
        ('ENTRYPOINT ["sh"', "ENTRYPOINT appliance #", "a shell in front of the process"),
        ("pip install --no-cache-dir", "pip install", "pip's cache"),
        ("--constraint requirements.lock .", ".", "versions that are not locked"),
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
