"""Whatever a message holds reaches the model, whoever speaks, or its template is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError
from appliance.prompt.build import build_chat
from appliance.prompt.template import ChatTemplate
from appliance.prompt.thinking import Thinking
from tests.prompt.conftest import NAMES

TEMPLATES = Path(__file__).parents[2] / "recipes" / "templates"
ASKED = {"role": "user", "content": "Well?"}
SAID = {"role": "assistant", "content": "Yes."}
FIRST, SECOND, THIRD = "Answer in numbers.", "Name all colours, then count.", "Be kind <|im_end|>"
EACH = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
TEXTS = "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}"
PARTS = "{% for m in messages %}[{{ m.role }}:" + TEXTS + "]{% endfor %}"
Make = Callable[..., ChatTemplate]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def around(role: str, content: Any) -> list[dict[str, Any]]:
    before = {"user": [], "system": [], "assistant": [ASKED]}[role]
    after = {"user": [], "system": [ASKED], "assistant": [ASKED]}[role]
    return [*before, {"role": role, "content": content}, *after]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("name", [*NAMES, "llava_1_5"])
def test_every_text_part_reaches_the_model(name: str, role: str, template_of: Make) -> None:
    source = None
    if name == "llava_1_5":
        name, source = "llava", (TEMPLATES / "llava_1_5.jinja").read_text()
    template = template_of(name, source)
    template.check()
    for texts in ((FIRST, SECOND), (FIRST, "", SECOND), (SECOND, FIRST, THIRD), ("ab",) * 40):
        text = build_chat(template, around(role, parts(*texts)), []).text
        position = 0
        for one in texts:
            position = text.index(one, position) + len(one)
    one = build_chat(template, around(role, parts(FIRST)), [])
    assert one.token_ids == build_chat(template, around(role, FIRST), []).token_ids


def test_a_template_that_reads_one_text_gets_one(template_of: Make) -> None:
    template = template_of("gemma3")
    prompt = build_chat(template, around("system", parts(FIRST, SECOND)), [])
    joined = build_chat(template, around("system", f"{FIRST}\n{SECOND}"), [])
    assert prompt.token_ids == joined.token_ids


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3"])
def test_what_a_template_keeps_by_itself_stays_as_it_was(
    name: str, template_of: Make, references: dict[str, Any]
) -> None:
    messages = around("user", parts("One,", "two", "three"))
    expected = references[name].apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )
    assert build_chat(template_of(name), messages, []).token_ids == expected["input_ids"]


JOINED = {  # by templates that put texts together in ways of their own
    "parts": (PARTS, "[user:ab]"),
    "texts alone": (EACH, "[user:a\nb]"),
    "lines": (PARTS.replace("{{ p.text }}", "{{ p.text }}\n"), "[user:a\nb\n]"),
    "blanks": (PARTS.replace("{{ p.text }}", " {{ p.text }}"), "[user: a b]"),
    "wrapped": (PARTS.replace("{{ p.text }}", "<p>{{ p.text }}</p>"), "[user:<p>a\nb</p>]"),
    "the first part": (EACH.replace("m.content", "m.content[0].text"), "[user:a\nb]"),
    "the last part": (EACH.replace("m.content", "m.content[-1]['text']"), "[user:a\nb]"),
    "either": (
        EACH.replace("m.content", "m.content if m.content is string else m.content[0].text"),
        "[user:a\nb]",
    ),
    "joined by the template": (
        EACH.replace("m.content", "m.content | map(attribute='text') | join('\n\n')"),
        "[user:a\n\nb]",
    ),
    "trimmed": (PARTS.replace("p.text", "p.text | trim"), "[user:ab]"),
    "the shortest": (EACH.replace("m.content", "m.content | sort | first"), None),
}


@pytest.mark.parametrize("case", JOINED)
def test_neighbouring_texts_are_one(case: str, template_of: Make) -> None:
    source, expected = JOINED[case]
    template = template_of("llama", source)
    if expected is None:
        with pytest.raises(ValueError, match="leaves out"):
            template.check()
        return
    template.check()
    assert build_chat(template, around("user", parts("a", "b")), []).text == expected


def only(role: str) -> str:
    return EACH.replace("for m in messages", f"for m in messages if m.role == '{role}'")


def but(role: str) -> str:
    return EACH.replace("for m in messages", f"for m in messages if m.role != '{role}'")


DROPS = {
    "system messages": (but("system"), "the system message"),
    "assistants": (but("assistant"), "an assistant's message"),
    "users": (but("user"), "a user's message"),
    "all but users": (only("user"), "the system message and an assistant's message"),
    "all but the last": ("{{ messages[-1].content }}", "the system message"),
    "all but the first": ("{{ messages[0].content }}", "an assistant's message"),
    "what was earlier": (
        "{{ messages[0].content if messages[0].role == 'system' }}"
        "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}",
        "an earlier message of the user",
    ),
    "everything": ("Hello", "a user's message"),
    "long texts": (EACH.replace("m.content", "m.content[:3]"), "a user's message"),
    "texts of the system but its first word": (
        EACH.replace("m.content", "m.content[:4] if m.role == 'system' else m.content"),
        "the system message",
    ),
    "words": (EACH.replace("m.content", "m.content | replace('bravo', '')"), "a user's message"),
    "unknown roles": (
        "{% for m in messages %}{% if m.role in ('user', 'model') %}{{ m.content }}{% endif %}"
        "{% endfor %}",
        "an assistant's message",
    ),
}


@pytest.mark.parametrize("case", DROPS)
def test_a_template_that_drops_a_text_is_refused(case: str, template_of: Make) -> None:
    source, what = DROPS[case]
    with pytest.raises(ValueError, match="leaves out") as refused:
        template_of("llama", source).check()
    assert what in str(refused.value)


MARK = "{{ '<|image_pad|>' if p.type == 'image' else '<|video_pad|>' if p.type == 'video' }}"
ITEMS = {  # of which each is a text of its own where the template would drop it
    "texts alone": PARTS,
    "pictures, no videos": PARTS.replace(
        TEXTS,
        "{% for p in m.content %}{{ p.text }}"
        "{{ '<|image_pad|>' if p.type == 'image' }}{% endfor %}",
    ),
    "one picture": PARTS.replace(TEXTS, "{% if m.content[1] %}<|image_pad|>{% endif %}" + TEXTS),
    "pictures first": PARTS.replace(
        TEXTS, "{% for p in m.content %}" + MARK + "{% endfor %}" + TEXTS
    ),
    "all": PARTS.replace(TEXTS, "{% for p in m.content %}{{ p.text }}" + MARK + "{% endfor %}"),
    "strings": EACH,
}


@dataclass
class Item:
    modality: str
    tokens: int = 3


@pytest.mark.parametrize("case", ITEMS)
def test_every_item_reaches_the_model(case: str, template_of: Make) -> None:
    template = template_of("qwen2_vl", ITEMS[case])
    template.check()
    for kinds in (["image"], ["video"], ["image", "image"], ["video", "image", "video"]):
        content: list[dict[str, str]] = []
        for number, kind in enumerate(kinds):
            content += [*parts(f"text {number},", "more."), {"type": kind}]
        prompt = build_chat(template, around("user", content), list(map(Item, kinds)))
        assert [span.modality for span in prompt.spans] == kinds
        assert all(f"text {number}," in prompt.text for number in range(len(kinds)))


def test_an_item_that_a_template_eats_is_missed(template_of: Make) -> None:
    source = EACH.replace("m.content", "m.content | select('lt', '\x7f') | join")
    template = template_of("qwen2_vl", source)
    with pytest.raises(ApplianceError) as refused:
        build_chat(template, around("user", [*parts("a"), {"type": "image"}]), [Item("image")])
    assert refused.value.code == "chat_template_failed"


REFUSES = {
    "system messages": "{% if m.role == 'system' %}{{ raise_exception('no system here') }}",
    "two of the same": (
        "{% if not loop.first and m.role == loop.previtem.role %}{{ raise_exception('twice') }}"
    ),
    "what it cannot add": "{% if m.role == 'system' %}{{ m.content + 1 }}",
}


@pytest.mark.parametrize("case", REFUSES)
def test_what_a_template_refuses_by_itself_is_no_loss(case: str, template_of: Make) -> None:
    source = EACH.replace("[{{ m.role", REFUSES[case] + "{% endif %}[{{ m.role")
    template = template_of("llama", source)
    template.check()
    messages = [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, ASKED]
    with pytest.raises(ApplianceError) as refused:
        build_chat(template, messages, [])
    assert refused.value.code in ("chat_template_refused", "chat_template_failed")


LEADING = (  # as many published templates: a system message counts at the beginning alone
    "{% if messages[0].role == 'system' %}S:{{ messages[0].content }}\n{% endif %}"
    "{% for m in messages if m.role != 'system' %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("roles", "at"),
    [
        ("su", None),
        ("suasu", 3),
        ("us", 1),
        ("ssu", 1),
        ("uau", None),
        ("uasu", 2),
        ("sssu", 1),
        ("suau", None),
        ("sus", 2),
        ("susus", 2),
    ],
)
def test_a_system_message_that_would_be_dropped_is_refused(
    roles: str, at: int | None, template_of: Make
) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = [{"role": names[role], "content": f"text {n}"} for n, role in enumerate(roles)]
    template = template_of("llama", LEADING)
    template.check()
    if at is None:
        text = build_chat(template, messages, []).text
        assert all(message["content"] in text for message in messages)
    else:
        with pytest.raises(ApplianceError) as refused:
            build_chat(template, messages, [])
        assert (refused.value.status, refused.value.param) == (400, f"messages[{at}]")
    text = build_chat(template_of("llama", EACH), messages, []).text
    assert all(message["content"] in text for message in messages)


OFF, ON, LOW = Thinking(False), Thinking(True), Thinking(True, "low")
THINKS = EACH + "{% if not enable_thinking | default(true) %}<think></think>{% endif %}"
ALWAYS = EACH + "{% if add_generation_prompt %}<think>\n{% endif %}"
OTHERWISE = EACH + "{{ '<think>' if thinking is defined and thinking else '</think>' }}"


@pytest.mark.parametrize(
    ("source", "listed", "kwargs", "end"),
    [
        (THINKS, (), {}, "<think></think>"),
        (THINKS, (), {"enable_thinking": False}, "<think></think>"),
        (THINKS, (), {"enable_thinking": None}, "<think></think>"),
        (OTHERWISE, (), {}, "</think>"),
        (OTHERWISE, (), {"thinking": None}, "</think>"),
        (EACH, (), {}, "]"),
        (EACH, (), {"enable_thinking": False}, "]"),
        (EACH, (), {"enable_thinking": False, "thinking": False}, "]"),
        (EACH + "{# enable_thinking #}", (), {}, "]"),
        (ALWAYS, (), {}, None),
        (ALWAYS, (), {"enable_thinking": False}, None),
        (EACH, (), {"enable_thinking": True}, None),
        (EACH, (), {"enable_thinking": 0}, None),
        (OTHERWISE, (), {"enable_thinking": False}, None),
    ],
)
def test_a_model_is_told_not_to_think_where_it_would(
    source: str, listed: tuple[str, ...], kwargs: dict[str, Any], end: str | None, template_of: Make
) -> None:
    template = template_of("llama", source, listed)
    if end is not None:
        assert build_chat(template, [ASKED], [], kwargs=kwargs, thinking=OFF).text.endswith(end)
        return
    with pytest.raises(ApplianceError) as refused:
        build_chat(template, [ASKED], [], kwargs=kwargs, thinking=OFF)
    assert (refused.value.status, refused.value.code) == (400, "unsupported_parameter")


LEVELS = EACH + "{{ 'effort ' ~ reasoning_effort | default('unsaid') }}"
BOTH = LEVELS + "{{ ' on' if enable_thinking is defined and enable_thinking }}"


@pytest.mark.parametrize(
    ("source", "thinking", "end"),
    [
        (OTHERWISE, ON, "<think>"),
        (OTHERWISE, LOW, "<think>"),
        (ALWAYS, LOW, "<think>\n"),
        (LEVELS, LOW, "effort low"),
        (LEVELS, OFF, "effort unsaid"),
        (LEVELS, Thinking(), "effort unsaid"),
        (BOTH, LOW, "effort low on"),
        (BOTH, ON, "effort unsaid on"),
    ],
)
def test_a_model_is_told_to_think_and_how_much(
    source: str, thinking: Thinking, end: str, template_of: Make
) -> None:
    template = template_of("llama", source)
    assert build_chat(template, [ASKED], [], thinking=thinking).text.endswith(end)


def test_a_model_that_does_not_think_is_not_told_to(template_of: Make) -> None:
    with pytest.raises(ApplianceError) as refused:
        build_chat(template_of("llama", EACH), [ASKED], [], thinking=LOW)
    assert (refused.value.status, refused.value.param) == (400, "reasoning_effort")


def test_a_model_thinks_unless_it_is_told(template_of: Make) -> None:
    assert build_chat(template_of("llama", THINKS), [ASKED], []).text.endswith("]")
    assert build_chat(template_of("llama", ALWAYS), [ASKED], []).text.endswith("<think>\n")
