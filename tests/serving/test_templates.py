"""Templates of an operator's own, and what becomes of texts with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.serving.conftest import Server, serving

LEADING = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content[0].text if messages[0].content is "
    "not string else messages[0].content }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
)


def told(folder: Path, template: Path) -> list[str]:
    limits = ["media.image.limit=0", "engine.threads=1", "model.name=tiny"]
    return [f"model.path={folder}", f"chat.template={template}", *limits]


def test_a_template_that_leaves_texts_out_ends_the_start(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    template = tmp_path / "last.jinja"
    template.write_text("{{ messages[-1].content }}")
    command = [sys.executable, "-m", "appliance", *told(checkpoint("llama"), template)]
    ended = subprocess.run(
        [*command, "server.port=0"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert "leaves out the system message" in last
    assert str(template) in last


@pytest.fixture
def server(checkpoint: Callable[[str], Path], tmp_path: Path) -> Iterator[Server]:
    template = tmp_path / "leading.jinja"
    template.write_text(LEADING)
    with serving(*told(checkpoint("llama"), template)) as server:
        yield server


def test_texts_of_the_system_are_whole_or_refused(server: Server) -> None:
    parts = [{"type": "text", "text": text} for text in ("Be brief.", "Answer in Latin verses.")]
    system, user = {"role": "system", "content": parts}, {"role": "user", "content": "Hello"}

    def length(*messages: object) -> int:
        answer = server.client.chat.completions.create(
            model="tiny",
            messages=list(messages),  # type: ignore[arg-type]
            max_tokens=1,
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    alone = length({**system, "content": parts[:1]}, user)
    assert length(system, user) >= alone + 8
    with pytest.raises(openai.BadRequestError) as refused:
        length(system, user, {"role": "assistant", "content": "Ave."}, system, user)
    assert refused.value.param == "messages[3]"
