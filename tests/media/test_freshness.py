from __future__ import annotations

import pytest

from appliance.media.freshness import FreshUrls, fresh_seconds

ANSWERS = [
    (0, {}),
    (60, {"cache-control": "max-age=60"}),
    (60, {"cache-control": "public, MAX-AGE=60 , immutable"}),
    (60, {"cache-control": 'max-age="60"'}),
    (50, {"cache-control": "max-age=60", "age": "10"}),
    (0, {"cache-control": "max-age=60", "age": "61"}),
    (7, {"cache-control": "max-age=60, s-maxage=7"}),
    (0, {"cache-control": "max-age=60, s-maxage=0"}),
    (3600, {"cache-control": "max-age=31536000"}),
    (3600, {"cache-control": "max-age=" + "9" * 400}),
    (0, {"cache-control": "max-age=60, private"}),
    (0, {"cache-control": 'private="set-cookie", max-age=60'}),
    (0, {"cache-control": "no-cache, max-age=60"}),
    (0, {"cache-control": "max-age=60, no-store"}),
    (0, {"cache-control": "max-age=60, max-age=90"}),
    (0, {"cache-control": "max-age=-60"}),
    (0, {"cache-control": "max-age=60s"}),
    (0, {"cache-control": "max-age"}),
    (0, {"cache-control": "max-age=6 0"}),
    (0, {"cache-control": ";;;"}),
    (0, {"cache-control": "max-age=60", "vary": "*"}),
    (60, {"cache-control": "max-age=60", "vary": "Accept, Origin"}),
    (0, {"cache-control": "max-age=60", "age": "x"}),
    (0, {"expires": "Thu, 01 Dec 2094 16:00:00 GMT"}),
]


@pytest.mark.parametrize(("seconds", "headers"), ANSWERS)
def test_only_what_an_origin_says_is_fresh(seconds: float, headers: dict[str, str]) -> None:
    sent = [(name.title().encode(), value.encode()) for name, value in headers.items()]
    assert fresh_seconds(sent) == seconds


def test_a_header_sent_twice_is_one() -> None:
    sent = [(b"Cache-Control", b"max-age=60"), (b"cache-control", b"no-store")]
    assert fresh_seconds(sent) == 0


def test_a_url_is_known_until_its_time_is_over() -> None:
    now = 100.0
    urls = FreshUrls(lambda: now, most=2)
    urls.put("a", b"1", 10)
    assert urls.find("a") == b"1"
    now = 110.0
    assert urls.find("a") is None
    urls.put("a", b"2", 10)
    urls.put("a", b"3", 0)
    assert urls.find("a") is None
    for name in ("a", "b", "c"):
        urls.put(name, name.encode(), 10)
    assert [urls.find(name) for name in ("a", "b", "c")] == [None, b"b", b"c"]
