"""Answers that are calls from their beginning on, or text: formats whose calls have no mark."""

from __future__ import annotations

from appliance.generation.rules import Rules


def calls_or_text(rules: Rules, calls: str, beginning: str) -> str:
    """A rule for calls, or for any text that does not begin as calls do.

    `beginning` is a regular expression for how far an answer has to come to be one.
    """
    other = rules.add("OTHER", rf"/(?s:.*)/ & ~/[ \r\n\t]*({beginning})(?s:.*)/")
    return rules.add("calls_or_text", f"{calls} | {rules.text(other)}")
