"""The Jinja dialect of chat templates: sandboxed and bounded, with what published templates use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, cast

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.environment import Template
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from markupsafe import Markup

from appliance.prompt import bounded
from appliance.prompt.bounds import FULL, Bounds, Overrun, metered

LONGEST_TIME_FORMAT = 200
COUNTED = "counted for a loop"  # no name that a template could write
TEXT_METHODS = """
capitalize casefold center count endswith find format format_map index isalnum isalpha isascii
isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust
lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip
split splitlines startswith strip swapcase title upper zfill
"""
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(TEXT_METHODS.split()),
    dict: frozenset(["copy", "get", "items", "keys", "values"]),
    list: frozenset(["copy", "count", "index"]),
    tuple: frozenset(["count", "index"]),
    int: frozenset(["bit_length", "is_integer"]),
    float: frozenset(["is_integer"]),
    bytes: frozenset(),
}


class TemplateRefusal(TemplateError):
    """The template itself refused the conversation with `raise_exception`."""


class Generation(Extension):
    """`{% generation %}` marks what the model wrote; it renders as its content."""

    tags = {"generation"}  # noqa: RUF012 - an instance variable of Jinja's base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class BoundedCode(CodeGenerator):
    """Python code of a template, in which whatever may take long or much is counted."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join_texts((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(")
        self._weighed(node.expr, frame)
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        self.write(f" {operators[node.op]} ")
        self._weighed(node.expr, frame)

    def visit_Pair(self, node: nodes.Pair, frame: Frame) -> None:
        self._weighed(node.key, frame)
        self.write(": ")
        self.visit(node.value, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("{")
        for pair in node.items:
            self.visit(pair, frame)
            self.write(", ")
        self.write("}")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.kept(")
        super().visit_Getitem(node, frame)
        self.write(")")

    def _weighed(self, node: nodes.Expr, frame: Frame) -> None:
        if isinstance(node, nodes.Const):
            self.visit(node, frame)
            return
        self.write("environment.weighed(")
        self.visit(node, frame)
        self.write(")")

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.literal({super()._output_const_repr(group)})"


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Settings and names as in transformers' chat templates (its `chat_template_utils.py`).

    A template ends within the bounds that are set while it renders, by `metered`; it raises Overrun
    for what would go beyond them, before it is made.
    """

    code_generator_class = BoundedCode
    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, loopcontrols],
            finalize=bounded.written,
            optimized=False,  # it would compute constants of any size
        )
        self.filters = bounded.filters() | {"tojson": _bounded_tojson, COUNTED: bounded.Counted}
        self.tests.update(cast(dict[str, Any], bounded.tests()))
        self.globals.pop("lipsum")
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.binop_table.update(
            {"+": bounded.add, "*": bounded.multiply, "%": bounded.modulo, "**": bounded.power}
        )

    join_texts = staticmethod(bounded.join_texts)
    weighed = staticmethod(bounded.weighed)
    kept = staticmethod(bounded.kept)
    literal = staticmethod(bounded.literal)

    def names(self, source: str, wanted: Iterable[str]) -> set[str]:
        """Those of the `wanted` names that a template reads, if its source can be parsed."""
        if not any(name in source for name in wanted):
            return set()
        return {node.name for node in self.parse(source).find_all(nodes.Name)}

    def compiled(self, source: str, bounds: Bounds = FULL) -> Template:
        """The template, ready to render. Raises TemplateError; Overrun for one that is too long."""
        if len(source) > bounds.source:
            raise Overrun("source")
        with metered(bounds):  # what is constant in it is computed now
            code = self.compile(source, raw=True)
        if len(code) > bounds.code:
            raise Overrun("code")
        made = compile(code, "<chat template>", "exec")
        return Template.from_code(self, made, self.make_globals(None))

    def rendered(self, template: Template, variables: dict[str, Any], bounds: Bounds) -> str:
        """What the template makes of the variables. Raises Overrun, and whatever a template can."""
        with metered(bounds):
            text = template.render(variables)
        if len(text) > bounds.characters:
            raise Overrun("characters")
        return text

    def _generate(
        self,
        source: nodes.Template,
        name: str | None,
        filename: str | None,
        defer_init: bool = False,
    ) -> str:
        for loop in list(source.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, COUNTED, [], [], None, None, lineno=loop.lineno)
        source.set_environment(self)
        code: str = super()._generate(source, name, filename, defer_init)
        return code

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        for kind, names in METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return True

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, bounded.weighed(argument))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return self.binop_table[operator](left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with fields whose widths and values are bounded."""
        plain = super().wrap_str_format(value)
        if plain is None:
            return None
        text, by_map = value.__self__, value.__name__ == "format_map"
        if isinstance(text, Markup):
            raise Overrun("memory")  # nobody formats what is escaped
        formatter = BoundedFormatter(self)

        def formatted(*arguments: Any, **named: Any) -> str:
            if by_map:
                return formatter.vformat(text, (), arguments[0])
            return formatter.vformat(text, arguments, named)

        return formatted

    def call(
        __self,
        __context: Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if isinstance(__obj, Macro):
            bounded.kept(None)
        else:
            bounded.method(__obj, args, kwargs)
        return bounded.kept(super().call(__context, __obj, *args, **kwargs))


class BoundedFormatter(SandboxedFormatter):
    """Widths of fields are bounded, and so is all that they are given."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        bounded.check_field(value, "")
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        bounded.check_field(value, format_spec)
        return super().format_field(value, format_spec)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


_bounded_tojson = bounded.bounded_filter("tojson", _tojson)


def _raise_exception(message: str) -> None:
    raise TemplateRefusal(message)


def _strftime_now(form: str) -> str:
    if len(form) > LONGEST_TIME_FORMAT:
        raise Overrun("memory")
    return datetime.now().strftime(form)
