"""An item's tensors in the engine, and whether they are what preparing one gives.

They come from a process that reads what strangers send. A wrong shape, or a grid of other numbers
than there are patches, might end more than the request that brought it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.request import MediaItem

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

FLOATS = ("float32", "float16", "bfloat16")


def tensors_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """What a family has made of an item, for an engine in the same process."""
    import torch  # the light half does without

    return {
        name: torch.from_numpy(np.require(array, requirements=["C", "W"]))
        for name, array in arrays.items()
    }


def fitting(
    item: MediaItem, name: str, dtypes: Collection[str], shape: tuple[int | None, ...]
) -> torch.Tensor:
    """Tensor `name` of an item. Raises ValueError unless it is finite, of such a type and shape.

    A length of None may be any.
    """
    tensor = item.tensors.get(name)
    if tensor is None:
        raise ValueError(f"there is no tensor {name}")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in dtypes or tensor.ndim != len(shape):
        raise ValueError(f"{name} are of another type or number of dimensions")
    if any(want not in (None, have) for want, have in zip(shape, tensor.shape, strict=True)):
        raise ValueError(f"{name} are of another shape")
    if dtype in FLOATS and not tensor.isfinite().all():
        raise ValueError(f"{name} hold values that are not finite")
    return tensor


def check_length(item: MediaItem, tokens: int) -> None:
    """Raises ValueError unless the item has that many placeholders."""
    if item.length != tokens:
        raise ValueError(f"it is of {tokens} tokens and has {item.length} placeholders")
