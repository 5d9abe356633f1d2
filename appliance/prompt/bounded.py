"""What expressions of a template do, with its result bounded before it is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from jinja2.filters import FILTERS, make_attrgetter
from jinja2.tests import TESTS
from jinja2.utils import pass_context, pass_environment, pass_eval_context
from markupsafe import Markup

from appliance.prompt.bounds import CLOCK_STEPS, INT_BITS, PIECE_BYTES, Overrun, meter, size

WIDEST = 10_000  # of a width, a count or a precision
WIDTH = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")
DIGITS = re.compile(r"\d+")
SEQUENCES = (str, list, tuple)
CONTAINERS = (list, tuple, dict)
MADE = (str, *CONTAINERS)
ESCAPED = 6  # most characters that one becomes in HTML
KEPT_FILTERS = frozenset(FILTERS) - {"filesizeformat", "pprint", "urlize", "xmlattr"}
LAZY_NAMES = """
batch count d default first items last length list map reject rejectattr reverse select selectattr
slice
"""
LAZY = frozenset(LAZY_NAMES.split())  # look into what they are given only as it is taken from them


class Counted:
    """What a loop goes over, each step of it counted."""

    __slots__ = ("_values",)

    def __init__(self, values: Any) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        step = meter().step
        for value in self._values:
            step()
            yield value

    def __len__(self) -> int:
        return len(self._values)


def add(left: Any, right: Any) -> Any:
    if isinstance(left, SEQUENCES):
        meter().spend(_with_escapes(left, right, size(left) + size(right)))
    else:
        meter().spend(0)
    return left + right


def multiply(left: Any, right: Any) -> Any:
    meter().step()
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, SEQUENCES) and isinstance(times, int):
            meter().take(size(sequence) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    return left * right


def power(left: Any, right: Any) -> Any:
    meter().step()
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))
    return left**right


def modulo(left: Any, right: Any) -> Any:
    meter().step()
    if isinstance(left, str):
        for found in WIDTH.finditer(left):
            for width in found.groups():
                _check_width(width)
        meter().take(_with_escapes(left, right, size(left) + meter().measure(right)))
    return left % right


def join_texts(values: Iterable[Any]) -> str:
    """The operands of `~` as one text."""
    texts = [as_text(value) for value in values]
    meter().take(sum(map(size, texts)))
    return "".join(texts)


def as_text(value: Any) -> str:
    """`str(value)`; a text is what it is."""
    meter().step()
    if isinstance(value, str):
        return value
    meter().take(meter().measure(value))
    return str(value)


def written(value: Any) -> str:
    """What an output expression gives."""
    text = value if isinstance(value, str) else as_text(value)
    meter().spend(size(text) + PIECE_BYTES)
    return text


def literal(text: str) -> str:
    """What a template has between its tags."""
    meter().spend(len(text))
    return text


def weighed(value: Any) -> Any:
    """A value that is going to be compared or hashed, which follows all it holds."""
    if isinstance(value, CONTAINERS):
        meter().measure(value)
    return value


def kept(value: Any) -> Any:
    """A value that has just been made."""
    meter().spend(size(value) if isinstance(value, MADE) else 0)
    return value


def filters() -> dict[str, Callable[..., Any]]:
    """Jinja's filters, bounded; those that nobody needs in a prompt are left out."""
    bounded = {name: bounded_filter(name, FILTERS[name]) for name in KEPT_FILTERS}
    return bounded | {
        "format": _like(FILTERS["format"], lambda text, *args, **named: _printf(text, args, named)),
        "int": _like(FILTERS["int"], _to_int),
        "join": _like(FILTERS["join"], _join),
        "replace": _like(FILTERS["replace"], _replace_filter),
        "sum": _like(FILTERS["sum"], _sum),
    }


def tests() -> dict[str, Callable[..., Any]]:
    """Jinja's tests, whose comparisons follow all that they are given."""
    return {name: _test(cast(Callable[..., Any], test)) for name, test in TESTS.items()}


def method(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raise Overrun for a call whose result would be too large; before it is called."""
    counted = meter()
    counted.step()
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    for argument in (*arguments, *named.values()):
        if isinstance(argument, CONTAINERS):
            counted.measure(argument)
        elif isinstance(argument, int) and isinstance(owner, str):
            _check_width(argument)
    if not isinstance(owner, str):
        if isinstance(owner, CONTAINERS) and name in ("count", "index"):
            counted.measure(owner)
        return
    counted.take(size(owner) * (ESCAPED if isinstance(owner, Markup) else 1))
    if name == "replace" and len(arguments) >= 2:
        _check_replace(owner, *arguments[:2])
    elif name == "join" and arguments:
        if isinstance(arguments[0], str | list | tuple | dict):
            count = len(arguments[0])
            counted.take(counted.measure(arguments[0]) + size(owner) * count)
        else:  # whatever gives one after the other: nobody knows how many
            raise Overrun("memory")
    elif name in ("split", "rsplit", "splitlines"):
        counted.take(PIECE_BYTES * min(len(owner), _pieces(owner, name, arguments)))


def check_field(value: Any, specification: str) -> None:
    """Raise Overrun for a field of `str.format` that would be too wide, or of too much."""
    for digits in DIGITS.findall(specification):
        _check_width(digits)
    meter().take(meter().measure(value))


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    given = 1 if _passed(function) else 0

    def bounded(*arguments: Any, **named: Any) -> Any:
        counted = meter()
        counted.step(CLOCK_STEPS // 4)
        value, others = arguments[given], (*arguments[given + 1 :], *named.values())
        if name not in LAZY:
            for one in (value, *others):
                if isinstance(one, CONTAINERS):
                    counted.measure(one)
        for one in others:
            if isinstance(one, int) and name not in ("d", "default"):
                _check_width(one)
        if name == "tojson":
            _check_json(value, others)
        elif name in ("indent", "wordwrap"):
            _check_lines(value, others)
        elif name in ("escape", "e", "forceescape", "title", "urlencode"):
            counted.take(ESCAPED * size(value))
        return kept(function(*arguments, **named))

    return _like(function, bounded)


def _test(function: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(*arguments: Any) -> Any:
        meter().step()
        for one in arguments:
            weighed(one)
        return function(*arguments)

    return _like(function, bounded)


def _like(function: Callable[..., Any], bounded: Callable[..., Any]) -> Callable[..., Any]:
    """`bounded`, given a context or an environment first where `function` is."""
    passed = getattr(function, "jinja_pass_arg", None)
    if passed is None:
        return bounded
    decorate = {
        "context": pass_context,
        "eval_context": pass_eval_context,
        "environment": pass_environment,
    }[passed.name]

    def called(*arguments: Any, **named: Any) -> Any:
        return bounded(*arguments, **named)

    return decorate(called)


def _passed(function: Callable[..., Any]) -> bool:
    return getattr(function, "jinja_pass_arg", None) is not None


def _printf(text: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if arguments and named:
        raise TypeError("positional and named values exclude each other")
    return modulo(as_text(text), named or arguments)


def _to_int(value: Any, default: int = 0, base: int = 10) -> Any:
    meter().step()
    if isinstance(value, str) and len(value) > WIDEST:
        raise Overrun("memory")
    return FILTERS["int"](value, default, base)


def _join(context: Any, values: Any, separator: Any = "", attribute: Any = None) -> Any:
    counted = meter()
    listed = []
    for value in values:
        counted.step()
        listed.append(value)
        counted.take(8)
    if attribute is None:
        texts = [as_text(value) for value in listed]
        counted.take(sum(map(size, texts)) + size(as_text(separator)) * len(texts))
    else:
        counted.take(ESCAPED * counted.measure(listed) + size(as_text(separator)) * len(listed))
    return FILTERS["join"](context, listed, separator, attribute)


def _replace_filter(context: Any, text: Any, old: Any, new: Any, count: Any = None) -> Any:
    text, old, new = as_text(text), as_text(old), as_text(new)
    _check_replace(text, old, new)
    return FILTERS["replace"](context, text, old, new, count)


def _sum(environment: Any, values: Any, attribute: Any = None, start: Any = 0) -> Any:
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    total = start
    for value in values:
        total = add(total, value)
    return total


def _check_replace(text: Any, old: Any, new: Any) -> None:
    text, old, new = as_text(text), as_text(old), as_text(new)
    times = text.count(old) if old else len(text) + 1
    meter().take(ESCAPED * size(text) + times * ESCAPED * size(new))


def _check_json(value: Any, others: tuple[Any, ...]) -> None:
    widest = max((one for one in others if isinstance(one, int)), default=0)
    indents = [len(one) for one in others if isinstance(one, str)]
    counted = meter()
    each = 2 + max([widest, *indents])
    counted.take(counted.measure(value) * min(each, 64) if each > 2 else counted.measure(value))
    if each > 64:
        raise Overrun("memory")


def _check_lines(value: Any, others: tuple[Any, ...]) -> None:
    text = as_text(value)
    wide = [one for one in others if isinstance(one, int) and not isinstance(one, bool)]
    wide += [size(one) for one in others if isinstance(one, str)]
    lines = len(text) if len(others) > 2 else text.count("\n") + 1 + len(text) // 2
    meter().take(size(text) + max([4, *wide]) * lines)


def _pieces(text: str, name: str, arguments: tuple[Any, ...]) -> int:
    if name == "splitlines" or not arguments or not isinstance(arguments[0], str):
        return len(text) // 2 + 1
    return text.count(arguments[0]) + 1 if arguments[0] else 1


def _check_width(width: Any) -> None:
    if width == "*" or (width not in (None, "") and abs(int(width)) > WIDEST):
        raise Overrun("memory")


def _check_bits(bits: int) -> None:
    if bits > INT_BITS:
        raise Overrun("memory")


def _with_escapes(left: Any, right: Any, total: int) -> int:
    return total * ESCAPED if isinstance(left, Markup) or isinstance(right, Markup) else total
