"""Files of the one folder that a policy opens, and nothing around it."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from appliance.media import local_file
from appliance.media.local_file import opened, read_local_file
from appliance.media.policy import MediaPolicy
from tests.media.policies import check_url, media_policy

CONTENT = bytes(range(256)) * 10
REFUSED = (400, "media_not_allowed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "deep" / "er").mkdir(parents=True)
    for place in (folder, folder / "deep", folder / "deep" / "er"):
        (place / "a.png").write_bytes(CONTENT)
    (folder / "ä b.png").write_bytes(CONTENT)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "media-too").mkdir()
    (tmp_path / "media-too" / "a.png").write_bytes(b"secret")
    return folder


@pytest.fixture
def policy(folder: Path) -> MediaPolicy:
    return media_policy(local_path=str(folder), max_bytes=len(CONTENT))


def read(path: Path | str, policy: MediaPolicy) -> bytes:
    return read_local_file(str(path), policy, param="p")


def failure(path: Path | str, policy: MediaPolicy) -> tuple[int, str | None]:
    with pytest.raises(ApplianceError) as caught:
        read(path, policy)
    assert caught.value.param == "p"
    for part in Path(policy.local_path or "/x").parts[1:]:
        assert part not in caught.value.message or part in ("media",)
    assert "Errno" not in caught.value.message
    return caught.value.status, caught.value.code


def test_files_inside_are_read(folder: Path, policy: MediaPolicy) -> None:
    for name in ("a.png", "deep/a.png", "deep/er/a.png", "deep/../a.png", "./a.png", "ä b.png"):
        assert read(f"{folder}/{name}", policy) == CONTENT
    url = check_url(f"file://{folder}/%C3%A4%20b.png", policy, lambda _: [])
    assert read(url.path, policy) == CONTENT


def test_nothing_is_read_without_a_folder(folder: Path, policy: MediaPolicy) -> None:
    assert failure(folder / "a.png", replace(policy, local_path=None)) == REFUSED


def test_what_lies_outside_is_refused_whether_it_exists_or_not(
    folder: Path, policy: MediaPolicy
) -> None:
    for path in (
        "/etc/passwd",
        "/etc/no-such-file",
        f"{folder}/../secret.png",
        f"{folder}/deep/../../secret.png",
        f"{folder}/../no-such-file",
        f"{folder}-too/a.png",
        f"{folder}/../media-too/a.png",
        f"{folder}",
        f"{folder}/",
        f"{folder}/deep/..",
        "a.png",
        "",
        "/",
    ):
        assert failure(path, policy) == REFUSED


def test_symlinks_may_lead_inside_only(folder: Path, policy: MediaPolicy) -> None:
    (folder / "in").symlink_to("deep/a.png")
    (folder / "in-folder").symlink_to(folder / "deep")
    (folder / "out").symlink_to(folder.parent / "secret.png")
    (folder / "out-folder").symlink_to(folder.parent)
    (folder / "deep" / "up").symlink_to("../../secret.png")
    (folder / "loop").symlink_to("loop")
    (folder / "chain").symlink_to("out")
    (folder / "root").symlink_to("/")
    for name in ("in", "in-folder/a.png", "in-folder/er/a.png"):
        assert read(folder / name, policy) == CONTENT
    for name in (
        "out",
        "out-folder/secret.png",
        "out-folder/media-too/a.png",
        "deep/up",
        "chain",
        "root/etc/passwd",
        "in-folder/up",
    ):
        assert failure(folder / name, policy) == REFUSED
    assert failure(folder / "loop", policy)[0] in (400, 424)


def test_a_folder_that_is_a_symlink_itself_is_opened(folder: Path, policy: MediaPolicy) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    linked = replace(policy, local_path=str(link))
    assert read(link / "a.png", linked) == CONTENT
    assert read(folder / "a.png", linked) == CONTENT
    assert failure(link / ".." / "secret.png", linked) == REFUSED


def test_only_regular_files_are_read(folder: Path, policy: MediaPolicy) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        (folder / "null").symlink_to("/dev/null")
        assert failure(folder / "null", policy) == REFUSED
        assert failure(folder / "deep", policy) == REFUSED
        assert failure(folder / "pipe", policy) == REFUSED  # without waiting for a writer
        assert failure(folder / "socket", policy) == (424, "media_fetch_failed")


def test_devices_are_refused(policy: MediaPolicy) -> None:
    devices = replace(policy, local_path="/dev")
    for name in ("null", "zero", "urandom"):
        assert failure(f"/dev/{name}", devices) == REFUSED
    assert failure("/proc/self/environ", replace(policy, local_path="/dev")) == REFUSED


def test_missing_files_inside_are_named_as_such(folder: Path, policy: MediaPolicy) -> None:
    for name in ("none.png", "none/a.png", "a.png/b", "n" * 300):
        assert failure(folder / name, policy) == (424, "media_fetch_failed")


def test_the_limit_is_exact_and_holds_for_files_that_grow(
    folder: Path, policy: MediaPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failure(folder / "a.png", replace(policy, max_bytes=len(CONTENT) - 1)) == (
        400,
        "media_too_large",
    )
    genuine = os.fstat

    def before_it_grew(handle: int) -> os.stat_result:
        status = list(genuine(handle))
        status[6] = 1
        return os.stat_result(status)

    monkeypatch.setattr(local_file.os, "fstat", before_it_grew)
    assert read(folder / "a.png", policy) == CONTENT
    assert failure(folder / "a.png", replace(policy, max_bytes=len(CONTENT) - 1)) == (
        400,
        "media_too_large",
    )


@pytest.mark.parametrize("swapped", ["file", "folder"])
def test_a_link_put_in_place_after_the_check_is_not_followed(
    swapped: str, folder: Path, policy: MediaPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check sees a file; before it is opened, file or folder become links to the outside."""
    genuine = os.path.realpath
    outside = folder.parent / "media-too"

    def checked_then_swapped(path: str) -> str:
        real = genuine(path)
        if str(path).endswith("a.png") and swapped == "file":
            (folder / "deep" / "a.png").unlink()
            (folder / "deep" / "a.png").symlink_to(outside / "a.png")
        elif str(path).endswith("a.png"):
            (folder / "deep").rename(folder / "was")
            (folder / "deep").symlink_to(outside)
        return real

    with monkeypatch.context() as patched:
        patched.setattr(local_file.os.path, "realpath", checked_then_swapped)
        assert failure(folder / "deep" / "a.png", policy) == (424, "media_fetch_failed")
    assert (folder / "deep" / "a.png").read_bytes() == b"secret", "the swap took place"


def test_files_swapped_again_and_again_are_never_read_from_outside(
    folder: Path, policy: MediaPolicy
) -> None:
    flipping = folder / "flip.png"
    spare = folder / "spare"
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            for target in ("a.png", "../secret.png"):
                spare.symlink_to(target)
                spare.replace(flipping)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        seen = set()
        for _ in range(500):
            try:
                seen.add(read(flipping, policy))
            except ApplianceError:
                seen.add(b"refused")
    finally:
        stop.set()
        thread.join()
    assert b"secret" not in seen
    assert seen <= {CONTENT, b"refused"}


def test_no_descriptor_is_left_open(folder: Path, policy: MediaPolicy) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for name in ("a.png", "none", "deep/none", "deep", "a.png/b"):
        try:
            read(folder / name, policy)
        except ApplianceError:
            continue
    assert set(os.listdir("/proc/self/fd")) == before
    with opened(str(folder), Path("deep/a.png")) as handle:
        assert os.read(handle, 3) == CONTENT[:3]
