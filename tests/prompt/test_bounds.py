"""A chat template ends, within what it may take, whatever it says."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.errors import ApplianceError
from appliance.prompt.bounds import FULL, OF_REQUEST, Overrun
from appliance.prompt.environment import ChatEnvironment
from appliance.prompt.template import ChatTemplate, Postponed
from tests.checkpoints.gemma3 import GEMMA_CHAT

SECONDS = 10.0  # of wall time, on a machine that has other things to do
GROWN_BYTES = 400 << 20
A = "{% set a = 'a' * 1000000 %}"
MANY = "{% set ns = namespace(a=['x', 'x']) %}{% for i in range(60) %}"
BOMBS = {
    "a long loop": "{% for i in range(10**9) %}x{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "loops that go over strings": A + "{% for i in a %}{% for j in a %}{% endfor %}{% endfor %}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a macro that never stops": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a text times a number": "{{ 'a' * 10**10 }}",
    "a constant that is computed at compile time": "{{ 'a'|center(1000000000) }}",
    "a list times a number": "{{ ([1] * 10**10)|length }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a product of large numbers": "{% set n = namespace(v=7) %}{% for i in range(99) %}"
    "{% set n.v = n.v * n.v %}{% endfor %}{{ n.v }}",
    "doubling by ~": "{% set n = namespace(v='ab') %}{% for i in range(60) %}"
    "{% set n.v = n.v ~ n.v %}{% endfor %}{{ n.v }}",
    "doubling by +": "{% set n = namespace(v='ab') %}{% for i in range(60) %}"
    "{% set n.v = n.v + n.v %}{% endfor %}{{ n.v }}",
    "doubling by set blocks": "{% set n = namespace(v='ab') %}{% for i in range(60) %}"
    "{% set b %}{{ n.v }}{{ n.v }}{% endset %}{% set n.v = b %}{% endfor %}{{ n.v }}",
    "doubling by join": "{% set n = namespace(v='ab') %}{% for i in range(60) %}"
    "{% set n.v = [n.v, n.v]|join %}{% endfor %}{{ n.v }}",
    "centering": "{% set w = 10**9 %}{{ 'a'|center(w) }}",
    "a method that pads": "{{ 'a'.ljust(10**9) }}",
    "a method that pads numbers": "{{ '1'.zfill(10**9) }}",
    "bytes of a number": "{{ (5).to_bytes(10**9, 'big') }}",
    "a printf width": "{{ '%1000000000d' % 1 }}",
    "a printf width from outside": "{{ '%*d' % (10**9, 1) }}",
    "a printf width in the filter": "{{ '%1000000000d'|format(1) }}",
    "a format width": "{{ '{:1000000000}'.format(1) }}",
    "a format width from outside": "{{ '{:{}}'.format(1, 10**9) }}",
    "a format map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "replacing each by many": A + "{{ a|replace('a', a) }}",
    "replacing by method": A + "{{ a.replace('a', a) }}",
    "joining by a long text": A + "{{ range(99999)|join(a) }}",
    "joining by method": A + "{{ a.join(a) }}",
    "indenting": "{{ ('\n' * 999999)|indent(9999) }}",
    "wrapping": A + "{{ a|wordwrap(1, wrapstring=a) }}",
    "filling up a batch": "{{ [1]|batch(10**9, 'x')|list|length }}",
    "slices": "{{ [1]|slice(10**9)|list|length }}",
    "rounding": "{{ 1.5|round(10**9, 'floor') }}",
    "sums of lists": "{{ ([range(9999)|list] * 99999)|sum(start=[])|length }}",
    "indented JSON": "{{ (range(99999)|list)|tojson(indent=9999) }}",
    "a number of many digits": A + "{{ ('f' * 1000000)|int(base=16) // 3 }}",
    "many pieces of a text": "{{ ('a ' * 8000000).split(' ')|length }}",
    "many copies kept": A + "{% set n = namespace(l=[]) %}{% for i in range(5000) %}"
    "{% set n.l = n.l + [a ~ i] %}{% endfor %}",
    "many slices kept": A + "".join(f"{{% set s{n} = a[{n + 1}:] %}}" for n in range(1000)),
    "text between the tags": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "lists that hold each other, shown": MANY
    + "{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
    "lists that hold each other, as JSON": MANY
    + "{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a|tojson }}",
    "lists that hold each other, compared": "{% set x = namespace(a=['x'], b=['x']) %}"
    "{% for i in range(60) %}{% set x.a = [x.a, x.a] %}{% set x.b = [x.b, x.b] %}{% endfor %}"
    "{{ x.a == x.b }}",
    "tuples that hold each other, as a key": "{% set x = namespace(a=('x',)) %}"
    "{% for i in range(60) %}{% set x.a = (x.a, x.a) %}{% endfor %}{{ {}[x.a] }}",
    "tuples that hold each other, as a literal's key": "{% set x = namespace(a=('x',)) %}"
    "{% for i in range(60) %}{% set x.a = (x.a, x.a) %}{% endfor %}{{ {x.a: 1} }}",
    "a test": "{% set x = namespace(a=['x'], b=['x']) %}"
    "{% for i in range(60) %}{% set x.a = [x.a, x.a] %}{% set x.b = [x.b, x.b] %}{% endfor %}"
    "{{ x.a is eq(x.b) }}",
    "filters over ranges": "{{ range(99999)|map('string')|map('length')|list }}" * 300,
    "paragraphs": "{{ lipsum(n=10**6) }}",
    "a time format": "{{ strftime_now('%c' * 10**6) }}",
}


@pytest.fixture
def tiny(template_of: Callable[..., ChatTemplate]) -> Callable[[str], str]:
    """The text that a request's own template makes of one message."""

    def render(source: str) -> str:
        template = template_of("llama").with_source(source)
        return template.render([{"role": "user", "content": "Hi"}]).text

    return render


def grown() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_would_take_too_much_is_refused_in_time(
    name: str, tiny: Callable[[str], str]
) -> None:
    before, started = grown(), time.monotonic()
    with pytest.raises(ApplianceError) as refused:
        tiny(BOMBS[name])
    assert time.monotonic() - started < SECONDS
    assert grown() - before < GROWN_BYTES
    assert refused.value.status == 400
    assert refused.value.code in ("chat_template_bounds", "chat_template_failed", "invalid_value")


def test_the_bounds_are_what_stops_them() -> None:
    """Without them the same text is made."""
    plain, bounded = ImmutableSandboxedEnvironment(), ChatEnvironment()
    source = "{{ 'a' * 40000000 }}"
    assert len(plain.from_string(source).render()) == 40_000_000
    with pytest.raises(Overrun):
        bounded.rendered(bounded.compiled(source), {}, FULL)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ messages|attr('__class__') }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ (1).from_bytes }}",
        "{{ {}.fromkeys }}",
        "{{ 'a'.encode().decode }}",
        "{{ 'a'.translate }}",
    ],
)
def test_no_template_reaches_what_is_not_its_own(source: str, tiny: Callable[[str], str]) -> None:
    try:
        shown = tiny(source)
    except ApplianceError as refused:
        shown = str(refused.code)
    assert shown in ("", "[Undefined]", "chat_template_failed", "invalid_value")


def test_a_text_that_is_too_long_is_named_so(template_of: Callable[..., ChatTemplate]) -> None:
    template = template_of("llama", "{{ messages[0].content * 100 }}")
    with pytest.raises(ApplianceError) as refused:
        template.render([{"role": "user", "content": "x" * 50_000}])
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.status == 400


def test_a_template_of_a_recipe_that_never_ends_is_refused_when_it_is_loaded(
    template_of: Callable[..., ChatTemplate],
) -> None:
    with pytest.raises(ValueError, match="more time or memory than it may"):
        template_of("llama", BOMBS["loops in loops"])


@pytest.mark.parametrize(
    "source",
    [
        "(" * 5000,
        "{{ " + "(" * 5000 + " }}",
        "{{ " + "[" * 200 + "]" * 200 + " }}",
        "{% if a %}" * 150 + "{% endif %}" * 150,
        "{{ " + "9" * 5000 + " }}",
        "{{ a" + "|d" * 3000 + "}}",
        "{{ x|no_such_filter }}",
        "{% include 'x' %}",
        "{% import '/etc/passwd' as p %}",
        "\0{{",
        "{% raw %}",
    ],
)
def test_what_no_compiler_takes_is_one_error(source: str, tiny: Callable[[str], str]) -> None:
    with contextlib.suppress(ApplianceError):  # anything else would be an answer of 500
        tiny(source)


def test_a_template_that_takes_long_does_not_hold_up_the_event_loop(
    template_of: Callable[..., ChatTemplate],
) -> None:
    """Rendered beside it, or put off, it lets the loop turn every 50 ms."""
    sources = ["loops in loops", "doubling by ~", "replacing by method", "many slices kept"]
    template = template_of("llama")
    dense = "{{ a+b*c }}" * 2900

    async def turning(source: str) -> float:
        loop, longest = asyncio.get_running_loop(), 0.0
        with ThreadPoolExecutor(1) as pool:
            ident = await loop.run_in_executor(pool, threading.get_ident)
            worked = partial(time.clock_gettime, time.pthread_getcpuclockid(ident))
            work = loop.run_in_executor(pool, _refused, template, source)
            last = worked()
            while not work.done():
                await asyncio.sleep(0.001)
                now = worked()
                longest, last = max(longest, now - last), now
        return longest

    # what the thread works from one turn of the loop to the next; tried again, because a busy
    # machine may leave the loop without a processor
    for source in [*(BOMBS[name] for name in sources), dense]:
        assert any(asyncio.run(turning(source)) < 0.05 for _ in range(8))


def _refused(template: ChatTemplate, source: str) -> None:
    with pytest.raises(ApplianceError):
        template.with_source(source)


def test_a_brief_render_is_put_off_and_not_refused(
    template_of: Callable[..., ChatTemplate],
) -> None:
    source = "{% if messages|length > 1 %}{% for i in range(90000) %}{% endfor %}{% endif %}ok"
    template, message = template_of("llama", source), {"role": "user", "content": "Hi"}
    assert template.render([message], brief=True).text == "ok"
    started = time.thread_time()
    with pytest.raises(Postponed):
        template.render([message, message], brief=True)
    assert time.thread_time() - started < 0.05
    assert template.render([message, message]).text == "ok"


def test_threads_have_meters_of_their_own() -> None:
    environment = ChatEnvironment()
    template = environment.compiled("{% for i in range(n) %}{{ i }},{% endfor %}")
    made: list[int] = []

    def render() -> None:
        for _ in range(5):
            made.append(len(environment.rendered(template, {"n": 20_000}, OF_REQUEST)))

    threads = [threading.Thread(target=render) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [108_890] * 15


def test_what_published_templates_use_gives_what_plain_jinja_gives() -> None:
    plain = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    plain.globals["raise_exception"] = pytest.fail
    bounded = ChatEnvironment()
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be <brief> & kind."},
        {"role": "user", "content": [{"type": "text", "text": " One "}, {"type": "image"}]},
        {"role": "assistant", "content": "a\nb", "tool_calls": [{"name": "f", "n": 1.5}]},
        {"role": "user", "content": "Grüße 👋"},
    ]
    for source in [*USED, GEMMA_CHAT]:
        variables = {"messages": messages[-3:] if source == GEMMA_CHAT else messages}
        variables |= {"bos_token": "<s>", "add_generation_prompt": True}
        expected = plain.from_string(source).render(variables)
        assert bounded.rendered(bounded.compiled(source), variables, FULL) == expected


USED = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ m.role }}"
    "{% endfor %}",
    "{% for m in messages if m.role != 'user' %}{{ loop.revindex }}{{ m['role'] }}{% endfor %}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|length }}"
    "{{ messages[::-1][0].role }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages|last|string }}",
    "{{ messages|rejectattr('role', 'in', ['user'])|map(attribute='role')|list }}",
    "{{ 'a,b'.split(',')[1] }}{{ ' x '.strip() }}{{ 'abc'.startswith('a') }}"
    "{{ 'A'|lower ~ 1 ~ none }}",
    "{{ '%s is %d' % ('a', 3) }}{{ '%05.1f'|format(2.5) }}{{ '{} {b:>4}'.format(1, b=2) }}",
    "{{ messages[2].content|indent(2, true) }}{{ messages[0].content|escape ~ '<' }}",
    "{{ [3, 1, 2]|sort|reverse|list }}{{ [1, 2, 2]|unique|list }}{{ [1, 2]|sum }}"
    "{{ {'b': 1}|dictsort }}",
    "{{ (1, 2) + (3,) }}{{ [1] * 2 }}{{ 7 // 2 }}{{ 2 ** 5 }}{{ -7 % 3 }}{{ 1 in [1] }}"
    "{{ 'x' not in 'y' }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "{% macro f(x, y=2) %}{{ x }}{{ y }}{{ varargs }}{% endmacro %}{{ f(1) }}{{ f(1, 3, 4) }}",
    "{% macro g() %}[{{ caller('z') }}]{% endmacro %}{% call(a) g() %}{{ a }}{% endcall %}",
    "{% set t %}{{ bos_token }}x{% endset %}{{ t|trim|upper }}{% filter upper %}a{{ 1 }}"
    "{% endfilter %}",
    "{% for k, v in messages[2].items() %}{{ k }}={{ v }};{% endfor %}"
    "{{ messages[2].get('no', 'd') }}",
    "{{ missing }}{{ missing|default('d') }}{{ missing is defined }}{{ messages is iterable }}",
    "{% for x in [[1, [2]], 3] recursive %}{{ x if x is number else loop(x) }}{% endfor %}",
    "{{ 'a-b'|replace('-', '+') }}{{ 'abcdefghijkl'|truncate(5) }}{{ '1'|int + 1 }}"
    "{{ 'x'.join(['a', 'b']) }}",
    "{{ range(3)|list }}{{ [1, 2, 3]|batch(2)|list }}{{ 3.14159|round(2) }}{{ 'ab'|first }}"
    "{{ dict(a=1) }}",
    "{{ 'x' if messages|length is even else 'y' }}{{ 'a b'|wordcount }}{{ 'ab cd'|title }}"
    "{{ 'abc'[1:] }}",
]


def test_recursion_of_python_is_left_as_it_was(tiny: Callable[[str], str]) -> None:
    limit = sys.getrecursionlimit()
    with pytest.raises(ApplianceError):
        tiny(BOMBS["a macro that never stops"])
    assert sys.getrecursionlimit() == limit
