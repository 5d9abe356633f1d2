"""When tokens came is read of what was received, and held against when the engine had them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.latency import Stream, delays, gaps, noted
from bench.load import LoadError

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(*ids: int) -> bytes:
    event = b"data: " + json.dumps({"choices": [{"token_ids": list(ids)}]}).encode() + b"\n\n"
    return b"%x\r\n" % len(event) + event + b"\r\n"


def test_an_event_is_there_with_its_last_byte() -> None:
    whole = HEAD + chunk(5) + chunk(6, 7)
    cut = len(HEAD) + 20
    last = cut + len(chunk(5))
    pieces = [(1.0, whole[:cut]), (2.0, whole[cut:last]), (3.0, whole[last:] + b"5\r\ndata:")]
    assert Stream(0.0, pieces).tokens() == [(2.0, [5]), (3.0, [6, 7])]
    with pytest.raises(LoadError):
        Stream(0.0, [(1.0, b"HTTP/1.1 503 Busy\r\n\r\n")]).tokens()


def test_gaps_are_those_of_which_a_part_lies_in_a_span() -> None:
    stream = [(float(n), [n]) for n in (0, 1, 2, 5, 6)]
    assert gaps(stream, [(2.5, 4.0)]) == [3000.0]
    assert gaps(stream, [(0.0, 1.5), (5.5, 5.6)]) == [1000.0] * 3
    assert gaps(stream, [(7.0, 8.0)]) == []


def test_a_delay_is_from_the_step_of_an_events_last_token(tmp_path: Path) -> None:
    file = tmp_path / "stamps"
    steps = [(1.0, "a", 5), (1.0, "b", 5), (2.0, "a", 6), (2.0, "b", 9), (3.0, "a", 7)]
    lines = [json.dumps([known, known + 0.5, [[name, [token]]]]) for known, name, token in steps]
    file.write_text("\n".join(lines) + "\n")
    by_request, sending = noted(file)
    assert sending == [0.5] * 5
    stream = [(1.25, [5]), (3.5, [6, 7])]
    assert delays(stream, by_request, (0.0, 9.0)) == [250.0, 500.0]
    assert delays(stream, by_request, (2.0, 9.0)) == [500.0]
    with pytest.raises(LoadError):
        delays([(1.25, [4])], by_request, (0.0, 9.0))
    by_request["c"] = [(known - 0.5, token) for known, token in by_request["a"]]
    by_request["d"] = [(known + 0.5, token) for known, token in by_request["a"]]
    assert delays(stream, by_request, (0.0, 9.0)) == [250.0, 500.0]
