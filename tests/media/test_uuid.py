"""A client's name for an item finds what that client sent under it, and is never trusted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.errors import ApplianceError
from appliance.media.bindings import Bindings
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_qwen2_vl
from tests.engine.models.pictures import picture
from tests.media.desk import Desk, desk, part, text
from tests.media.test_image import encoded

RED, BLUE = (encoded(picture(60, 60, seed=seed)) for seed in (1, 2))
ALICE, BOB = b"alice", b"bob"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VL:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


@pytest.fixture
def intake(family: Qwen2VL) -> Iterator[Desk]:
    with desk(family) as made:
        yield made


def test_a_uuid_alone_means_what_was_sent_under_it(intake: Desk) -> None:
    sent = intake.one(part(RED, "cat"), ALICE)
    asked = intake.metric("media_seconds_count", stage="fetch", modality="image")
    again = intake.one(part(None, "cat"), ALICE)
    assert again.tensors is sent.tensors
    assert again.digest == sent.digest
    assert again.length == sent.length
    assert intake.metric("media_seconds_count", stage="fetch", modality="image") == asked


def test_an_unseen_uuid_is_a_400_that_says_so(intake: Desk) -> None:
    error = intake.refusal([text("a"), part(None, "cat")], ALICE)
    assert (error.status, error.code) == (400, "media_cache_miss")
    assert error.param == "messages[0].content[1].uuid"
    assert intake.metric("media_refusals_total", code="media_cache_miss", modality="image") == 1


def test_a_uuid_is_scoped_to_its_api_key(intake: Desk) -> None:
    red = intake.one(part(RED, "cat"), ALICE)
    assert intake.refusal([part(None, "cat")], BOB).code == "media_cache_miss"
    assert intake.refusal([part(None, "cat")]).code == "media_cache_miss"
    blue = intake.one(part(BLUE, "cat"), BOB)
    assert blue.digest != red.digest
    assert intake.one(part(None, "cat"), ALICE).digest == red.digest
    assert intake.one(part(None, "cat"), BOB).digest == blue.digest


def test_other_content_under_a_uuid_is_a_409_and_changes_nothing(intake: Desk) -> None:
    red = intake.one(part(RED, "cat"), ALICE)
    error = intake.refusal([part(BLUE), part(BLUE, "cat")], ALICE)
    assert (error.status, error.code) == (409, "media_uuid_conflict")
    assert error.param == "messages[0].content[1].uuid"
    assert intake.one(part(None, "cat"), ALICE).digest == red.digest
    assert intake.one(part(RED, "cat"), ALICE).digest == red.digest


def test_a_uuid_is_never_the_identity_of_its_content(intake: Desk) -> None:
    named, other = intake.one(part(RED, "cat"), ALICE), intake.one(part(RED, "dog"), ALICE)
    plain = intake.one(part(RED), ALICE)
    assert named.digest == other.digest == plain.digest


def test_what_cannot_be_decoded_binds_nothing(intake: Desk) -> None:
    assert intake.refusal([part(b"no picture", "cat")], ALICE).code == "media_undecodable"
    assert intake.refusal([part(None, "cat")], ALICE).code == "media_cache_miss"
    assert intake.one(part(RED, "cat"), ALICE).length


def test_a_uuid_alone_may_mean_another_part_of_the_request(intake: Desk) -> None:
    contents = [[part(None, "cat"), part(BLUE)], [part(RED, "cat")]]
    messages = [{"role": "user", "content": content} for content in contents]
    first, blue, red = intake.load(messages, ALICE)
    assert first.digest == red.digest != blue.digest


def test_two_contents_under_one_uuid_in_a_request_are_a_409(intake: Desk) -> None:
    error = intake.refusal([part(RED, "cat"), part(BLUE, "cat")], ALICE)
    assert (error.status, error.code) == (409, "media_uuid_conflict")


def test_an_evicted_item_is_a_miss_and_stays_bound(family: Qwen2VL) -> None:
    with desk(family, "cache.media_gb=0.000012") as intake:  # one picture
        red = intake.one(part(RED, "cat"), ALICE)
        assert intake.one(part(None, "cat"), ALICE).digest == red.digest
        intake.one(part(BLUE), ALICE)
        assert intake.refusal([part(None, "cat")], ALICE).code == "media_cache_miss"
        assert intake.refusal([part(BLUE, "cat")], ALICE).code == "media_uuid_conflict"
        assert intake.one(part(RED, "cat"), ALICE).digest == red.digest


def test_the_names_that_are_kept_are_bounded() -> None:
    bindings = Bindings(most=3)
    for name in ("a", "b", "c"):
        bindings.bind(ALICE, name, name.encode(), "p")
    assert bindings.find(ALICE, "a") == b"a"
    bindings.bind(ALICE, "d", b"d", "p")
    assert bindings.find(ALICE, "b") is None
    assert bindings.find(ALICE, "a") == b"a"
    with pytest.raises(ApplianceError):
        bindings.bind(ALICE, "d", b"other", "p")
    assert bindings.find(ALICE, "d") == b"d"


def test_a_uuid_stands_for_content_however_it_is_prepared(intake: Desk) -> None:
    options = {"image": {"made": "up"}}
    plain = intake.one(part(RED, "cat"), ALICE)
    (other,) = intake.load([{"content": [part(RED, "cat")]}], ALICE, options)
    assert other.digest != plain.digest
    for given, expected in ((None, plain), (options, other)):
        (found,) = intake.load([{"content": [part(None, "cat")]}], ALICE, given)
        assert found.digest == expected.digest
