"""transformers' own Qwen2-VL video processor, run without the torchvision that it imports."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import warnings
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
    SizeDict,
)
from transformers.utils import TensorType, logging
from transformers.video_utils import VideoMetadata, group_videos_by_shape, reorder_videos


class VideosKwargs(TypedDict, total=False):
    """What the processor's keyword arguments are declared with."""


class BaseVideoProcessor:
    """The few methods of the base class that need torchvision, in torch."""

    num_frames = None
    fps = None
    rescale_factor = 1 / 255

    def __init__(self, **options: Any) -> None:
        for name, value in options.items():
            setattr(self, name, value)

    def resize(self, image: torch.Tensor, size: SizeDict, resample: int) -> torch.Tensor:
        """As torchvision resizes tensors of bytes bicubically: antialiased, in bytes."""
        shape, flat = image.shape, image.flatten(0, -4)
        resized = torch.nn.functional.interpolate(
            flat, (size.height, size.width), mode="bicubic", antialias=True
        )
        return resized.view(*shape[:-2], size.height, size.width)

    def rescale_and_normalize(
        self,
        images: torch.Tensor,
        do_rescale: bool,
        factor: float,
        do_normalize: bool,
        mean: Any,
        std: Any,
    ) -> torch.Tensor:
        images = images.float() * factor if do_rescale else images.float()
        if do_normalize:
            mean, std = (torch.tensor(value).view(3, 1, 1) for value in (mean, std))
            images = (images - mean) / std
        return images


class VideoProcessor:
    """The processor of a checkpoint's preprocessor_config.json, or with options of its own."""

    def __init__(self, folder: Path | None = None, **options: Any) -> None:
        if folder is not None:
            options = json.loads((folder / "preprocessor_config.json").read_text()) | options
        for name in ("image_processor_type", "processor_class"):
            options.pop(name, None)
        self.theirs = _processor_class()(**options)

    def indices(self, total: int, rate: float, **wanted: Any) -> list[int]:
        metadata = VideoMetadata(total_num_frames=total, fps=rate)
        return self.theirs.sample_frames(metadata, **wanted).tolist()

    def __call__(self, frames: list[Image.Image], **changes: Any) -> dict[str, torch.Tensor]:
        video = torch.from_numpy(np.stack([np.array(frame) for frame in frames]))
        names = ("size", "resample", "rescale_factor", "image_mean", "image_std", "patch_size")
        names += ("temporal_patch_size", "merge_size", "cap_pixels_per_frame")
        options = {name: getattr(self.theirs, name) for name in names} | changes
        options["size"] = SizeDict(**options["size"])
        switches = {"do_resize": True, "do_rescale": True, "do_normalize": True}
        return dict(self.theirs._preprocess([video.permute(0, 3, 1, 2)], **switches, **options))


def _processor_class() -> Any:
    """The class of transformers' source file, its imports left out."""
    found = importlib.util.find_spec("transformers.models.qwen2_vl")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).with_name("video_processing_qwen2_vl.py")
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    names: dict[str, Any] = {
        "__name__": "video_processing_qwen2_vl",
        "math": math,
        "warnings": warnings,
        "torch": torch,
        "BatchFeature": BatchFeature,
        "OPENAI_CLIP_MEAN": OPENAI_CLIP_MEAN,
        "OPENAI_CLIP_STD": OPENAI_CLIP_STD,
        "PILImageResampling": PILImageResampling,
        "SizeDict": SizeDict,
        "Unpack": Unpack,
        "VideosKwargs": VideosKwargs,
        "TensorType": TensorType,
        "auto_docstring": lambda function: function,
        "logging": logging,
        "BaseVideoProcessor": BaseVideoProcessor,
        "VideoMetadata": VideoMetadata,
        "group_videos_by_shape": group_videos_by_shape,
        "reorder_videos": reorder_videos,
    }
    exec(compile(tree, str(path), "exec"), names)  # noqa: S102 - a file of transformers that is installed
    return names["Qwen2VLVideoProcessor"]
