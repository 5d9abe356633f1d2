from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.prompt.stops import StopStrings


def run(pieces: list[str], stops: list[str], include: bool = False) -> tuple[str, bool]:
    watcher = StopStrings(stops, include)
    shown = ""
    for piece in pieces:
        text, stopped = watcher.push(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + watcher.finish(), False


def test_a_stop_string_across_pieces_is_never_shown() -> None:
    watcher = StopStrings(["\nUser:"])
    assert watcher.push("Hello\nUs") == ("Hello", False)
    assert watcher.push("er") == ("", False)
    assert watcher.push(": again") == ("", True)
    assert watcher.push("more") == ("", True)
    assert watcher.finish() == ""


def test_what_looked_like_a_stop_string_is_shown_after_all() -> None:
    watcher = StopStrings(["STOP"])
    assert watcher.push("a STO") == ("a ", False)
    assert watcher.push("RE") == ("STORE", False)
    assert watcher.push(" ST") == (" ", False)
    assert watcher.finish() == "ST"


@pytest.mark.parametrize(("include", "shown"), [(False, "one "), (True, "one two")])
def test_the_stop_string_is_shown_only_if_asked_for(include: bool, shown: str) -> None:
    assert run(["one t", "wo three"], ["two"], include) == (shown, True)


def test_the_first_to_be_complete_counts() -> None:
    assert run(["xabcx"], ["abc", "b"]) == ("xa", True)
    assert run(["xabcx"], ["bc", "abc"]) == ("x", True)


def test_text_without_a_stop_string_passes() -> None:
    assert run(["abc", "def"], ["x"]) == ("abcdef", False)
    assert run(["abc", "def"], []) == ("abcdef", False)


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    cuts=st.lists(st.integers(0, 30)),
    include=st.booleans(),
)
def test_the_result_does_not_depend_on_how_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    shown, stopped = run(pieces, stops, include)
    assert (shown, stopped) == run([text], stops, include)
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(shown)
    if not include:
        assert not any(stop in shown for stop in stops)


def test_time_is_linear_in_the_text_whatever_is_looked_for() -> None:
    """Counted in characters compared, not in seconds."""

    class Counted(str):
        compared = 0

        def __getitem__(self, key: object) -> str:
            Counted.compared += isinstance(key, int)
            return super().__getitem__(key)  # type: ignore[index]

    length = 2000
    watcher = StopStrings([Counted("a" * length + "b"), Counted("a" * length + "c")])
    text = ("a" * (length - 1) + "d") * 10  # nearly one of them, again and again
    for character in text:
        assert watcher.push(character)[1] is False
    assert len(text) <= Counted.compared < 10 * (len(text) + 2 * length)
