"""What the intake is measured against: decoding and resizing alone, and transformers' processor."""

from __future__ import annotations

import io
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

Work = Callable[[bytes], object]


@dataclass(slots=True, frozen=True)
class Rate:
    """Items a second by the clock, and the CPU time that all processes took."""

    name: str
    items: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.items / self.seconds

    @property
    def cpu_milliseconds(self) -> float:
        """Of one item, on one core."""
        return self.cpu_seconds / self.items * 1e3


def bare_images(size: tuple[int, int]) -> Work:
    """Pillow's decoder and its bicubic filter."""

    def work(file: bytes) -> object:
        with Image.open(io.BytesIO(file)) as image:
            return image.resize(size, Image.Resampling.BICUBIC)

    return work


def processor_images(folder: str) -> Work:
    """transformers' processor on Pillow, as a server without torchvision calls it."""
    import torch
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    torch.set_num_threads(1)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def work(file: bytes) -> object:
        with Image.open(io.BytesIO(file)) as image:
            return processor(image.convert("RGB"), return_tensors="pt")

    return work


def bare_videos(folder: str) -> Work:
    """PyAV's decoder to the last frame that the family takes, those resized by Pillow."""
    import av

    from engine.models.family import VideoOptions
    from engine.models.registry import family_for

    family = family_for(folder)

    def work(file: bytes) -> object:
        with av.open(io.BytesIO(file)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            wanted = family.sample_frames(stream.frames, rate, VideoOptions())
            taken, frames = set(wanted), []
            for number, frame in enumerate(container.decode(stream)):
                if number in taken:
                    size = family.video_size(  # type: ignore[attr-defined]
                        len(wanted), frame.width, frame.height, VideoOptions()
                    )
                    frames.append(frame.to_image().resize(size, Image.Resampling.BICUBIC))
                if number == wanted[-1]:
                    break
            return frames

    return work


def peer_rate(
    name: str,
    make: Callable[..., Work],
    argument: object,
    files: Sequence[bytes],
    workers: int,
) -> Rate:
    """A peer in as many processes, each with its share of the files in memory already."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for number in range(workers):
        ours, theirs = context.Pipe()
        share = list(files[number::workers])
        process = context.Process(target=_share, args=(theirs, make, argument, share), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    for end in ends:
        end.recv()
    begun = time.perf_counter()
    for end in ends:
        end.send(None)
    cpu = sum(end.recv() for end in ends)
    seconds = time.perf_counter() - begun
    for process in processes:
        process.join()
    return Rate(name, len(files), seconds, cpu)


def _share(
    end: Connection, make: Callable[..., Work], argument: object, files: list[bytes]
) -> None:
    work = make(argument)
    work(files[0])
    end.send(None)
    end.recv()
    before = time.process_time()
    for file in files:
        work(file)
    end.send(time.process_time() - before)


def clip(path: Path, width: int, height: int, seconds: int, fps: int = 30) -> bytes:
    """A video of moving pictures in H.264, or in what the build has instead."""
    import av
    import numpy as np

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (36, 64, 3), dtype=np.uint8))
    scene = np.asarray(coarse.resize((width * 2, height), Image.Resampling.BICUBIC))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * fps):
            left = number * 4 % width
            picture = np.ascontiguousarray(scene[:, left : left + width])
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path.read_bytes()
