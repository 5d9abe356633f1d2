"""Forms that answers are held to, each with what tells by other means whether a text has it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from lark import Lark
from lark.exceptions import LarkError

Check = Callable[[str], bool]

REGEXES = [
    "[0-9]{3}-[a-f]{2,4}",
    "(yes|no)",
    "a{1,9}",
    '"[a-z ]{0,6}"',
    "-?[1-9][0-9]{0,5}",
    r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,4})?",
    r"[+-]?[0-9]{1,3}(\.[0-9]{1,2})?([eE][+-]?[0-9]{1,2})?",
    "0x[0-9a-fA-F]{1,8}",
    "[01]{8}",
    "#[0-9a-f]{6}",
    r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    "([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?",
    r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])",
    "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    r"[a-z]{1,8}@[a-z]{1,8}\.(com|org|net)",
    r"https?://[a-z]{1,10}\.org(/[a-z]{0,5}){0,3}",
    r"\+[1-9][0-9]{1,3} [0-9]{3,7}",
    "[A-Z]{2}[0-9]{2}( [0-9]{4}){2,4}",
    "[A-Z][a-z]{1,9}( [A-Z][a-z]{1,9}){0,2}",
    "(red|green|blue)(, (red|green|blue)){0,3}",
    "(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day",
    "M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})",
    r"\d{2,4}",
    r"\w{1,10}",
    r"\d+\s\d{1,2}",
    r"[^\d\s]{1,6}",
    r"\S{2,5}",
    r"[\w.-]{1,12}",
    ".{1,12}",
    r"[^,\n]{0,8},[^,\n]{0,8},[^,\n]{0,8}",
    r"\[[a-z]{1,5}\]\([a-z]{1,8}\)",
    r"<b>[^<>\n]{0,12}</b>",
    "a?b?c?d?",
    "(a|b(c|d(e|f)))",
    "((ab|cd){2}|x{3})",
    "(ab?){2,5}",
    "(x(y(z)?)?)?!",
    "é{2,4}",
    "[äöüß]{1,6}",
    "[а-я]{2,9}",
    "(東京|京都|大阪)",
    "[一-龥]{1,4}",
    "(😀|😁|🎉){1,3}",
    r"\x41{2}\u0042?",
    r"[\x20-\x7e]{5,15}",
    r"[\[\]{}()*+?.^$|\\]{1,6}",
    r"\$[0-9]{1,3}(,[0-9]{3}){0,2}\.[0-9]{2}",
    r"(?i:stop|go)",
    r"(?s:.){3}",
    "|maybe",
]

LARK = [
    'start: "a" start "b" | "ab"',
    'start: "(" start ")" start | "."',
    'start: sum\nsum: product ("+" product)*\nproduct: atom ("*" atom)*\n'
    'atom: NUMBER | "(" NUMBER ")"\nNUMBER: /[1-9][0-9]?/',
    'start: "a" start "a" | "b" start "b" | "c"',
    'start: pair ("," pair){0,3}\npair: KEY "=" VALUE\nKEY: /[a-z]{1,4}/\nVALUE: /[0-9]{1,3}/',
    'start: "if " cond " then " act (" else " act)?\ncond: "it rains" | "it is cold"\n'
    'act: "stay" | "go " WHERE\nWHERE: "out" | "home"',
    'start: "SELECT " NAME ("," NAME){0,2} " FROM " NAME (" WHERE " NAME "=" NUMBER)?\n'
    "NAME: /[a-d]{1,3}/\nNUMBER: /[0-9]{1,2}/",
    'start: list\nlist: "[" (item (";" item){0,2})? "]"\nitem: list | /[x-z]/',
    'start: MOVE (" " MOVE){1,3}\nMOVE: /[KQRBN]?[a-h][1-8]/',
    'start: "<" T ">" start "</" T ">" | "-"\nT: "i" | "u"',
]
GBNF: list[tuple[str, Check]] = [
    ('root ::= "yes" | "no"', lambda text: text in ("yes", "no")),
    ('root ::= [a-c]+ "!"', lambda text: bool(re.fullmatch("[a-c]+!", text))),
    (
        'root ::= word (" " word)? "."\nword ::= [A-Z] [a-z] [a-z]',
        lambda text: bool(re.fullmatch(r"[A-Z][a-z]{2}( [A-Z][a-z]{2})?\.", text)),
    ),
    (
        'root ::= "[" num ("," num)* "]"\nnum ::= [1-9] [0-9]?',
        lambda text: all(0 < number < 100 for number in ast.literal_eval(text)),
    ),
    (
        'root ::= "(" root ")" | "x"',
        lambda text: text == "(" * text.count("(") + "x" + ")" * text.count("("),
    ),
    (
        'root ::= a b\na ::= "left" | "right"\nb ::= " " [0-9] "m"',
        lambda text: bool(re.fullmatch("(left|right) [0-9]m", text)),
    ),
    (
        'root ::= "{" pair ("," pair)? "}"\npair ::= "\\"" [a-z] "\\":" [0-9]',
        lambda text: 1 <= len(ast.literal_eval(text)) <= 2,
    ),
    (
        "root ::= [^0-9\\n] [^0-9\\n] [0-9]",
        lambda text: bool(re.fullmatch(r"[^0-9\n]{2}[0-9]", text)),
    ),
    (
        'root ::= line line?\nline ::= "- " [a-z]+ "\\n"',
        lambda text: bool(re.fullmatch(r"(- [a-z]+\n){1,2}", text)),
    ),
    (
        '# a comment\nroot ::= day ("/" day){1,2}\nday ::= "0" [1-9] | [12] [0-9]',
        lambda text: bool(re.fullmatch(r"(0[1-9]|[12][0-9])(/(0[1-9]|[12][0-9])){1,2}", text)),
    ),
]


def is_of_regex(pattern: str, text: str) -> bool:
    """As the whole text, with the classes of ASCII; letters of any case are those of Unicode."""
    flags = re.NOFLAG if "(?i" in pattern else re.ASCII
    return re.fullmatch(pattern, text, flags) is not None


def is_of_lark(rules: str, text: str) -> bool:
    """As Lark itself has it."""
    spelled = re.sub(r"\{(\d),(\d)\}(?![^/\n]*/)", r"~\1..\2", rules)
    try:
        Lark(spelled, parser="earley", lexer="dynamic_complete").parse(text)
    except LarkError:
        return False
    return True
