"""Messages of any size reach a loop that never waits, whatever it did to the descriptor."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable

import pytest
import uvloop

from engine.process.frames import CHUNK, FrameReceiver, frame_pipe

Loop = Callable[[], asyncio.AbstractEventLoop]
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])


def received(receiver: FrameReceiver, loop: Loop, count: int, pause: float = 0.0) -> list[bytes]:
    """`count` messages, read by an event loop that after each read is busy for `pause` seconds."""

    async def scenario() -> list[bytes]:
        messages: list[bytes] = []
        done = asyncio.Event()

        def read() -> None:
            messages.extend(receiver.receive())
            time.sleep(pause)
            if len(messages) >= count:
                done.set()

        asyncio.get_running_loop().add_reader(receiver.fileno(), read)
        await asyncio.wait_for(done.wait(), 60)
        asyncio.get_running_loop().remove_reader(receiver.fileno())
        return messages

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(scenario())


@LOOPS
def test_messages_of_all_sizes_come_whole_and_in_order(loop: Loop) -> None:
    random.seed(1)
    sizes = [0, 1, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 20 * CHUNK]
    sizes += [random.randrange(0, 200_000) for _ in range(50)]
    sent = [os.urandom(size) for size in sizes]
    receiver, sender = frame_pipe()

    def send() -> None:
        for message in sent:
            sender.send(message)

    thread = threading.Thread(target=send)
    thread.start()
    assert received(receiver, loop, len(sent)) == sent
    thread.join()


@LOOPS
def test_a_slow_reader_holds_the_sender_and_loses_nothing(loop: Loop) -> None:
    sent = [bytes([number]) * 100_000 for number in range(100)]
    receiver, sender = frame_pipe()
    progress: list[int] = []

    def send() -> None:
        for number, message in enumerate(sent):
            sender.send(message)
            progress.append(number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    time.sleep(0.3)
    assert len(progress) < len(sent)  # nobody reads yet
    assert received(receiver, loop, len(sent), pause=0.005) == sent
    thread.join()


def test_a_sender_that_is_gone_is_told_from_one_that_is_slow() -> None:
    receiver, sender = frame_pipe()
    assert receiver.receive() == []
    sender.send("last")
    sender.close()
    assert receiver.receive() == ["last"]
    with pytest.raises(EOFError):
        receiver.receive()


def test_a_reader_that_is_gone_ends_the_sender() -> None:
    receiver, sender = frame_pipe()
    receiver.close()
    with pytest.raises(OSError, match="Broken pipe"):
        sender.send(b"x")
