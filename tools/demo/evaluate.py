"""Ask the demo model questions that it was not trained on, through its endpoint, and count.

    python -m tools.demo.evaluate                                 start recipe=demo, ask, end it
    python -m tools.demo.evaluate --model-path out/checkpoint     of weights that are not shipped
    python -m tools.demo.evaluate engine.threads=1                with any of the appliance's keys
    python -m tools.demo.evaluate --base-url http://127.0.0.1:8000/v1 --background 255,255,255

Transparent pictures are shown by one server for each background, or by the one that is asked, whose
background must then be told. `--reference FOLDER` gives the same questions, of one turn, to
transformers' own model of that checkpoint.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai

from bench.exam import questions as stored
from bench.exam.questions import Item
from bench.server_process import ServerCommand, ServerProcess, free_port
from tools.demo import exam, judging, questions
from tools.demo.exam import SKILLS, Chat
from tools.demo.palette import Colour
from tools.demo.reference import Reference

BACKGROUNDS = [",".join(map(str, laid_on)) for laid_on in stored.BACKGROUNDS.values()]
START_SECONDS = 180.0
MOST_TOKENS = 80
LATER = "later turns"  # of chats of any skill


@dataclass(slots=True)
class Answer:
    """What was asked and said. `reference` is what transformers says to the same."""

    skill: str
    about: str  # the skill of the question, where the chat is foreign or goes on
    question: str
    expected: str
    answer: str
    background: str | None = None
    reference: str | None = None

    @property
    def right(self) -> bool:
        return judging.same_meaning(self.answer, self.expected, self.question)

    @property
    def reference_right(self) -> bool:
        return judging.same_meaning(self.reference or "", self.expected, self.question)


@contextmanager
def served(background: Colour, overrides: Sequence[str]) -> Iterator[str]:
    """Run the appliance and yield its base URL; its end is awaited."""
    port = free_port()
    laid_on = f"media.image.rgba_background={list(background)}"
    told = ["recipe=demo", laid_on, *overrides, f"server.port={port}"]
    command = ServerCommand(
        "appliance", [sys.executable, "-m", "appliance", *told], "/readyz", port
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(command, Path(folder) / "log") as process,
    ):
        asyncio.run(process.wait_ready(START_SECONDS))
        yield f"http://127.0.0.1:{port}/v1"


class Examiner:
    """Asks a served model, several chats at once."""

    def __init__(self, base_url: str, model: str | None, at_once: int) -> None:
        self._client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=600)
        self._model = model or self._client.models.list().data[0].id
        self._at_once = at_once

    def ask(self, chats: Sequence[Chat]) -> list[list[str]]:
        """Return the answers of each chat."""
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(self._hold, chats))

    def _hold(self, chat: Chat) -> list[str]:
        messages: list[Any] = []
        answers: list[str] = []
        for number, turn in enumerate(chat.turns):
            content: Any = turn.question
            if number == 0 and chat.items:
                told = [{"type": "text", "text": turn.question}]
                shown = [part(item) for item in chat.items]
                content = told + shown if chat.text_first else shown + told
            messages.append({"role": "user", "content": content})
            answers.append(self._answer(messages))
            messages.append({"role": "assistant", "content": answers[-1]})
        return answers

    def _answer(self, messages: list[Any]) -> str:
        """Return the answer; a refusal is one, and wrong."""
        try:
            answer = self._client.chat.completions.create(
                model=self._model, messages=messages, temperature=0, max_tokens=MOST_TOKENS
            )
        except openai.APIStatusError as refused:
            log(f"refused: {refused.status_code} {refused.body}")
            return f"(refused: {refused.status_code})"
        return answer.choices[0].message.content or ""


def part(item: Item) -> dict[str, Any]:
    """Return the item as a part of a message."""
    url = f"data:{item.media_type};base64,{base64.b64encode(item.data).decode()}"
    return {"type": f"{item.modality}_url", f"{item.modality}_url": {"url": url}}


def answers_of(chats: Sequence[Chat], said: Sequence[Sequence[str]]) -> list[Answer]:
    """Return every turn with its answer; a chat's first comes under the chat's skill."""
    return [
        Answer(LATER if number else chat.skill, turn.skill, turn.question, turn.answer, answer,
               chat.background)
        for chat, answers in zip(chats, said, strict=True)
        for number, (turn, answer) in enumerate(zip(chat.turns, answers, strict=True))
    ]  # fmt: skip


def evaluate(options: argparse.Namespace) -> list[Answer]:
    backgrounds = [colour(text) for text in options.background]
    skills = [skill for skill in SKILLS if not options.skills or skill in options.skills]
    chats = exam.chats(skills, options.examples, options.seed, backgrounds)
    found: list[Answer] = []
    reference = Reference(options.reference) if options.reference else None
    for number, background in enumerate(backgrounds):
        name = exam.nearest(background)
        anywhere = None if number == 0 else name  # what no background decides is asked once
        mine = [chat for chat in chats if chat.background in (name, anywhere)]
        if not mine:
            continue
        began = time.monotonic()
        if options.base_url:
            said = Examiner(options.base_url, options.model, options.at_once).ask(mine)
        else:
            with served(background, options.overrides) as base_url:
                said = Examiner(base_url, options.model, options.at_once).ask(mine)
        answers = answers_of(mine, said)
        log(f"on {name}: {len(answers)} answers in {time.monotonic() - began:.0f} s")
        if reference is not None:
            began = time.monotonic()
            openings = [answer for answer in answers if answer.skill != LATER]
            for chat, answer in zip(mine, openings, strict=True):
                answer.reference = reference.answer(chat, background, MOST_TOKENS)
            log(f"transformers: {len(openings)} in {time.monotonic() - began:.0f} s")
        found += answers
    return found


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def colour(text: str) -> Colour:
    red, green, blue = (int(value) for value in text.split(","))
    return red, green, blue


def table(answers: Sequence[Answer]) -> list[list[str]]:
    """Return the rows of the report, header first."""
    compared = any(answer.reference is not None for answer in answers)
    header = ["", "skill", "questions", "right", "95 % interval", "same text"]
    rows = [header + ["transformers", "points", "same answer"] * compared]
    for skill in (*SKILLS, LATER):
        of_skill = [answer for answer in answers if answer.skill == skill]
        if not of_skill:
            continue
        right = sum(answer.right for answer in of_skill)
        low, high = judging.interval(right, len(of_skill))
        same = sum(judging.same_text(answer.answer, answer.expected) for answer in of_skill)
        number = str(SKILLS.get(skill, ("", ""))[0])
        row = [number, skill, str(len(of_skill)), percent(right, len(of_skill)),
               f"{100 * low:.1f} to {100 * high:.1f}", percent(same, len(of_skill))]  # fmt: skip
        if compared:
            row += against([answer for answer in of_skill if answer.reference is not None])
        rows.append(row)
    return rows


def against(answers: Sequence[Answer]) -> list[str]:
    """Return how often transformers is right, by how many points we differ, and equal answers."""
    if not answers:
        return ["", "", ""]
    ours, theirs = (sum(getattr(a, name) for a in answers) for name in ("right", "reference_right"))
    equal = sum(answer.answer == answer.reference for answer in answers)
    points = 100 * (ours - theirs) / len(answers)
    return [percent(theirs, len(answers)), f"{points:+.1f}", f"{equal} of {len(answers)}"]


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "| " + " | ".join("-" * max(3, width) for width in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def flips(answers: Sequence[Answer]) -> str:
    """Return of how many transparent pictures the answer is right on every background."""
    transparent = [answer for answer in answers if answer.skill == "transparent"]
    backgrounds = list(dict.fromkeys(answer.background for answer in transparent))
    by_picture = zip(
        *([a for a in transparent if a.background == name] for name in backgrounds), strict=True
    )
    shown = [all(answer.right for answer in same) for same in by_picture]
    named = questions.listed([str(background) for background in backgrounds])
    return f"Right on {named}: {sum(shown)} of {len(shown)} transparent pictures."


def foreign(answers: Sequence[Answer]) -> str:
    """Return how the foreign pictures went, skill by skill."""
    asked = [answer for answer in answers if answer.skill == "foreign"]
    skills = list(dict.fromkeys(answer.about for answer in asked))
    parts = []
    for skill in skills:
        of_skill = [answer.right for answer in asked if answer.about == skill]
        parts.append(f"{skill} {sum(of_skill)} of {len(of_skill)}")
    return f"Foreign pictures: {', '.join(parts)}."


def arguments(told: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m tools.demo.evaluate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the appliance")
    parser.add_argument("--base-url", help="of a server that runs already")
    parser.add_argument("--model", help="name on that server; else the first one it lists")
    parser.add_argument("--model-path", type=Path, help="checkpoint in place of the recipe's")
    parser.add_argument("--examples", type=int, default=100, help="chats a skill")
    parser.add_argument("--seed", type=int, default=0, help="of the questions")
    parser.add_argument("--background", action="append", help=f"default {' '.join(BACKGROUNDS)}")
    parser.add_argument("--skills", nargs="+", choices=sorted(SKILLS), help="only these")
    parser.add_argument("--reference", type=Path, help="folder of the checkpoint, for transformers")
    parser.add_argument("--at-once", type=int, default=8, help="requests in flight")
    parser.add_argument("--out", type=Path, action="append", default=[], help="a .md or .json file")
    options = parser.parse_args(told)
    if options.base_url and (options.overrides or options.model_path):
        parser.error("a server that runs already takes no overrides")
    if options.model_path:
        options.overrides.append(f"model.path={options.model_path.resolve()}")
    options.background = options.background or BACKGROUNDS
    if options.base_url and len(options.background) > 1:
        options.background = options.background[:1]
    return options


def main(told: Sequence[str] | None = None) -> int:
    options = arguments(told)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the server too
    answers = evaluate(options)
    report = markdown(table(answers))
    for skill, told_apart in (("transparent", flips), ("foreign", foreign)):
        if any(answer.skill == skill for answer in answers):
            report += f"\n{told_apart(answers)}\n"
    print(report)
    for file in options.out:
        if file.suffix == ".json":
            listed = [asdict(answer) | {"right": answer.right} for answer in answers]
            file.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        else:
            file.write_text(report, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
