from __future__ import annotations

import base64
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from appliance.errors import ApplianceError
from appliance.media.embeddings import Embeddings, arrays_of, load_embeddings
from appliance.media.limits import EmbeddingsPolicy
from appliance.media.source import EmbeddingFields
from engine.models.family import Family
from engine.models.llava import Llava
from engine.models.qwen2_vl import Qwen2VL
from tests.checkpoints import write_llava, write_qwen2_vl
from tests.media.policies import embeddings_policy

POLICY = embeddings_policy(max_bytes=1 << 20)
PARAM = "messages[0].content[0].image_embeds"
GRID = torch.tensor([[1, 4, 6]])


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Qwen2VL(write_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl")))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Llava(write_llava(tmp_path_factory.mktemp("llava")))


def values(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def tensor(found: Embeddings) -> torch.Tensor:
    return torch.from_numpy(np.array(found.embeds))


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tensors(**named: torch.Tensor) -> str:
    return coded(save(named))


def npy(array: Any, version: tuple[int, int] = (1, 0)) -> str:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), version=version)
    return coded(file.getvalue())


def load(told: Any, family: Family, policy: EmbeddingsPolicy = POLICY) -> Embeddings:
    fields = EmbeddingFields(told if isinstance(told, dict) else {"image_embeds": told})
    return load_embeddings(fields.encoded(), "image", family, policy, PARAM)


def refusal(told: Any, family: Family, policy: EmbeddingsPolicy = POLICY) -> ApplianceError:
    with pytest.raises(ApplianceError) as refused:
        load(told, family, policy)
    assert (refused.value.status, refused.value.param) == (400, PARAM)
    return refused.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["embeds", "image_embeds"])
def test_safetensors_are_taken(name: str, dtype: torch.dtype, llava: Family) -> None:
    sent = values(16, 64, dtype=dtype)
    found = load(tensors(**{name: sent}), llava)
    assert found.grid is None
    carried = torch.float32 if dtype == torch.bfloat16 else dtype  # numpy has no bfloat16
    assert found.embeds.dtype.name == str(carried).removeprefix("torch.")
    assert torch.equal(tensor(found), sent.to(carried))
    assert torch.equal(tensor(found).to(dtype), sent)
    assert torch.equal(tensor(load(tensors(**{name: sent[None]}), llava)), sent.to(carried))
    assert list(arrays_of(found, "image", llava)) == ["embeds"]


def test_every_number_of_bfloat16_is_taken_as_it_is(llava: Family) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    every = torch.from_numpy(bits).view(torch.bfloat16)
    finite = every[every.isfinite()]
    for part in torch.nn.functional.pad(finite, (0, -len(finite) % 1024)).view(-1, 16, 64):
        found = tensor(load(tensors(embeds=part), llava))
        assert torch.equal(found.view(torch.int32), part.float().view(torch.int32))
        assert torch.equal(found.to(torch.bfloat16).view(torch.int16), part.view(torch.int16))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_npy_is_taken(dtype: str, version: tuple[int, int], llava: Family) -> None:
    sent = values(16, 64).numpy().astype(dtype)
    assert np.array_equal(load(npy(sent, version), llava).embeds, sent)
    turned = np.asfortranarray(sent)
    assert np.array_equal(load(npy(turned, version), llava).embeds, sent)


def test_a_grid_comes_in_any_of_its_forms(qwen2_vl: Family) -> None:
    sent = values(6, 64)
    together = tensors(image_embeds=sent, image_grid_thw=GRID)
    forms: list[Any] = [together, {"image_embeds": together}]
    grids = [[1, 4, 6], [[1, 4, 6]], tensors(image_grid_thw=GRID), tensors(grid=GRID[0].int())]
    grids += [npy(GRID.numpy()), npy(GRID[0].numpy().astype("<i4"))]
    for embeds in (tensors(embeds=sent), npy(sent.numpy())):
        forms += [{"image_embeds": embeds, "image_grid_thw": grid} for grid in grids]
    for form in forms:
        found = load(form, qwen2_vl)
        assert found.grid == (1, 4, 6)
        assert torch.equal(tensor(found), sent)
        made = arrays_of(found, "image", qwen2_vl)
        assert np.array_equal(made["image_grid_thw"], GRID)
        assert made["image_grid_thw"].dtype == np.int64


@pytest.mark.parametrize(
    "shape",
    [
        (64,),
        (16, 63),
        (16, 65),
        (15, 64),
        (17, 64),
        (0, 64),
        (16, 0),
        (2, 16, 64),
        (1, 1, 16, 64),
        (),
    ],
)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...], llava: Family) -> None:
    error = refusal(tensors(embeds=torch.zeros(shape)), llava)
    assert error.code == "embedding_invalid"


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.int32,
        torch.uint8,
        torch.uint16,
        torch.bool,
        torch.float8_e4m3fn,
        torch.complex64,
    ],
)
def test_a_wrong_dtype_is_refused(dtype: torch.dtype, llava: Family) -> None:
    sent = torch.ones(16, 64).to(dtype)
    assert "float32" in refusal(tensors(embeds=sent), llava).message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_refused(
    value: float, dtype: torch.dtype, llava: Family
) -> None:
    sent = values(16, 64, dtype=dtype)
    sent[9, 3] = value
    error = refusal(tensors(embeds=sent), llava)
    assert error.code == "embedding_invalid"
    assert "finite" in error.message


@pytest.mark.parametrize(
    "grid",
    [
        None, [1, 4, 4], [1, 4, 8], [1, 3, 8], [0, 4, 6], [6, 2, 2], [1, 4], [], [1, 4, 6, 1],
        [[1, 4, 6]] * 2,
        [1.0, 4, 6], ["1", 4, 6], [True, 4, 6], [1, -4, -6], [1, 1 << 40, 6], [[]], [[[1, 4, 6]]],
        tensors(image_grid_thw=GRID.float()), tensors(image_grid_thw=GRID[0, :2]), "AAAA", 7, {},
    ],
)  # fmt: skip
def test_a_wrong_grid_is_refused(grid: Any, qwen2_vl: Family) -> None:
    told: dict[str, Any] = {"image_embeds": tensors(embeds=values(6, 64))}
    if grid is not None:
        told["image_grid_thw"] = grid
    assert refusal(told, qwen2_vl).code == "embedding_invalid"


def test_torch_save_is_told_how_to_send_safetensors(llava: Family) -> None:
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(values(16, 64), file, _use_new_zipfile_serialization=zipped)
        error = refusal(coded(file.getvalue()), llava)
        assert error.code == "embedding_invalid"
        assert "safetensors.torch.save" in error.message


def test_pickles_are_never_opened(llava: Family, tmp_path: Path) -> None:
    mark = tmp_path / "opened"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    trap = np.empty(1, object)
    trap[0] = Trap()
    file = io.BytesIO()
    np.save(file, trap, allow_pickle=True)
    for data in (pickle.dumps(Trap()), pickle.dumps(Trap(), 0), file.getvalue()):
        assert refusal(coded(data), llava).code == "embedding_invalid"
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap()))
    assert mark.exists()


def header(text: str, payload: bytes = b"\0" * 4096, version: bytes = b"\1\0") -> str:
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return coded(b"\x93NUMPY" + version + size + text.encode() + payload)


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (16, 64), }\n"


def test_a_header_written_by_hand_can_be_good(llava: Family) -> None:
    assert load(header(GOOD), llava).embeds.shape == (16, 64)


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("16, 64", "16, 65"),
        GOOD.replace("16, 64", "16, 63"),
        GOOD.replace("16, 64", "999999999999, 999999999999"),
        GOOD.replace("16, 64", "-16, -64"),
        GOOD.replace("<f4", ">f4"),
        GOOD.replace("<f4", "|O"),
        GOOD.replace("'<f4'", "[('a', '<f4')]"),
        GOOD.replace("False", "exit()"),
        GOOD.replace("(16, 64)", "(" * 3000 + ")" * 3000),
        GOOD + " " * 70_000,
        "",
    ],
)
def test_a_header_that_lies_is_refused(text: str, llava: Family) -> None:
    version = b"\2\0" if len(text) > 1 << 15 else b"\1\0"
    assert refusal(header(text, version=version), llava).code == "embedding_invalid"


@pytest.mark.parametrize(
    "told",
    [
        "", "AAAA", "not base64!", "AAA", "é", None, 5, [], {}, {"image_embeds": None},
        {"image_embeds": ["AAAA"]},
        coded(b"\x93NUMPY"), coded(b"\x93NUMPY\1\0"), coded(struct.pack("<Q", 1 << 60) + b"{}"),
        coded(struct.pack("<Q", 2) + b"{}"), coded(b"PK\3\4" + b"\0" * 50),
        tensors(other=torch.zeros(16, 64)),
        tensors(embeds=torch.zeros(16, 64), more=torch.zeros(1)),
        tensors(embeds=torch.zeros(16, 64), image_grid_thw=GRID),
    ],
)  # fmt: skip
def test_what_holds_no_embeddings_is_refused(told: Any, llava: Family) -> None:
    assert refusal(told, llava).code == "embedding_invalid"


def test_too_many_bytes_are_refused_before_they_are_decoded(llava: Family) -> None:
    sent = tensors(embeds=values(16, 64))
    assert load(sent, llava, embeddings_policy(max_bytes=8192)).embeds.shape == (16, 64)
    error = refusal(sent, llava, embeddings_policy(max_bytes=2048))
    assert error.code == "media_too_large"
    assert refusal("!" * 5000, llava, embeddings_policy(max_bytes=2048)).code == "media_too_large"
