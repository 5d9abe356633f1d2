from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import ApplianceError
from appliance.prompt.build import build_chat
from appliance.prompt.template import ChatTemplate
from tests.prompt.conftest import NAMES

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 👋"}],
    [
        {"role": "user", "content": "One, two"},
        {"role": "assistant", "content": "three, <think>hm</think> four"},
        {"role": "user", "content": "  and then?  \n"},
    ],
    [{"role": "user", "content": "is a < b | c > d? a<|b> {{ messages }} {% raw %} ▁ Ġ"}],
    [{"role": "user", "content": "东京 Grüße\t\r\n<s >< image>"}],
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompting", [True, False])
def test_ids_equal_those_of_transformers(
    name: str,
    messages: list[dict[str, Any]],
    prompting: bool,
    template_of: Callable[..., ChatTemplate],
    references: dict[str, Any],
) -> None:
    prompt = build_chat(template_of(name), messages, [], add_generation_prompt=prompting)
    expected = references[name].apply_chat_template(
        messages, add_generation_prompt=prompting, return_dict=True
    )
    assert prompt.token_ids == expected["input_ids"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("last", ["The answer is", "The answer is  ", "Once <b"])
def test_a_continued_message_equals_that_of_transformers(
    name: str, last: str, template_of: Callable[..., ChatTemplate], references: dict[str, Any]
) -> None:
    messages = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": last}]
    prompt = build_chat(
        template_of(name), messages, [], add_generation_prompt=False, continue_final_message=True
    )
    expected = references[name].apply_chat_template(
        messages, continue_final_message=True, return_dict=True
    )
    assert prompt.token_ids == expected["input_ids"]


def test_template_options_must_be_listed(template_of: Callable[..., ChatTemplate]) -> None:
    messages = CONVERSATIONS[0]
    quiet = build_chat(template_of("qwen3"), messages, [], kwargs={"enable_thinking": False})
    assert quiet.text.endswith("<think>\n\n</think>\n\n"), "its own switch is its user's"
    build_chat(template_of("qwen3", kwargs=("tone",)), messages, [], kwargs={"tone": "kind"})
    with pytest.raises(ApplianceError) as refused:
        build_chat(template_of("qwen3"), messages, [], kwargs={"tone": "kind"})
    assert refused.value.status == 400
    assert refused.value.param == "chat_template_kwargs.tone"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("{{ raise_exception('roles must alternate') }}", "chat_template_refused"),
        ("{{ messages[0].content + 1 }}", "chat_template_failed"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat_template_failed"),
        ("{{ messages.append(1) }}", "chat_template_failed"),
    ],
)
def test_a_failing_template_is_the_requests_fault(
    source: str, code: str, template_of: Callable[..., ChatTemplate]
) -> None:
    with pytest.raises(ApplianceError) as refused:
        build_chat(template_of("llama", source), CONVERSATIONS[0], [])
    assert (refused.value.status, refused.value.code) == (400, code)


def test_names_and_filters_of_published_templates_work(
    template_of: Callable[..., ChatTemplate],
) -> None:
    source = (
        "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}"
        "{% if loop.index0 == 1 %}{% break %}{% endif %}{% endfor %}"
        "{{ strftime_now('%Y')[:2] }}{{ eos_token }}{% if tools %}x{% endif %}"
    )
    text = build_chat(template_of("llama", source), CONVERSATIONS[1][1:], []).text
    assert text == '{"role": "user", "content": "Hi 👋"}20<|im_end|>'


def test_a_template_that_is_no_jinja_is_named(template_of: Callable[..., ChatTemplate]) -> None:
    with pytest.raises(ValueError, match="line 2"):
        template_of("llama", "\n{% for %}")
    with pytest.raises(ApplianceError) as refused:
        template_of("llama").with_source("{% for %}")
    assert refused.value.param == "chat_template"


def test_parts_are_joined_for_a_template_that_knows_only_text(
    template_of: Callable[..., ChatTemplate],
) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    template = template_of("llama", "{% for m in messages %}[{{ m.content + '' }}]{% endfor %}")
    assert build_chat(template, [{"role": "user", "content": parts}], []).text == "[Hello\nthere]"
