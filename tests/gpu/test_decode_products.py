"""The products of a decoding step: their CUDA, thread by thread on the processor, against torch."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu, linear, rms_norm, silu

NATIVE = Path("engine/native").resolve()
EMULATION = Path(__file__).with_name("emulation")
COMPILER = shutil.which("c++")
STORE, ADD, GATE, HEADS = range(4)
ONE_BLOCK = 227 * 1024

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


class Product(ctypes.Structure):
    """`decode::Product`, field by field."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("input", ctypes.c_void_p),
        ("input_stride", ctypes.c_int64),
        ("tokens", ctypes.c_int),
        ("depth", ctypes.c_int),
        ("bias", ctypes.c_void_p),
        ("norm_weight", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
        ("from_one", ctypes.c_bool),
        ("output", ctypes.c_void_p),
        ("output_stride", ctypes.c_int64),
        ("tiles", ctypes.c_int),
        ("tiles_of_group", ctypes.c_int),
        ("tiles_of_round", ctypes.c_int),
        ("widest", ctypes.c_int),
        ("gelu", ctypes.c_bool),
        ("heads", ctypes.c_int),
        ("kv_heads", ctypes.c_int),
        ("head_dim", ctypes.c_int),
        ("page_size", ctypes.c_int),
        ("angles", ctypes.c_void_p),
        ("page_start", ctypes.c_void_p),
        ("page_indices", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("fp8", ctypes.c_bool),
        ("next", ctypes.c_void_p * 2),
        ("next_bytes", ctypes.c_int64 * 2),
    ]


@dataclass(slots=True, frozen=True)
class Deal:
    """How the work is dealt out: to blocks, in clusters, with so much shared memory."""

    split: int = 1
    blocks: int = 4
    shared: int = ONE_BLOCK


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("emulation"), NATIVE)


def build(folder: Path, native: Path) -> ctypes.CDLL:
    assert COMPILER is not None
    target = folder / "decode_products.so"
    source = EMULATION / "decode_products.cpp"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
    subprocess.run(
        [COMPILER, *flags, f"-I{native}", f"-I{EMULATION}", str(source), "-o", str(target)],
        check=True,
    )
    found = ctypes.CDLL(str(target))
    assert found.size_of_product() == ctypes.sizeof(Product)
    return found


def run(library: ctypes.CDLL, product: Product, mode: int, deal: Deal) -> int:
    return int(
        library.run(
            ctypes.byref(product),
            mode,
            deal.split,
            deal.blocks,
            ctypes.c_int64(deal.shared),
        )
    )


def product_of(
    weight: torch.Tensor,
    x: torch.Tensor,
    output: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    **more: object,
) -> Product:
    return Product(
        weight=weight.data_ptr(),
        input=x.data_ptr(),
        input_stride=x.stride(0),
        tokens=len(x),
        depth=x.shape[1],
        bias=None if bias is None else bias.data_ptr(),
        norm_weight=None if norm is None else norm.data_ptr(),
        epsilon=1e-6,
        output=output.data_ptr(),
        output_stride=output.stride(0),
        tiles=len(weight) // 16,
        **more,
    )


def some(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * scale).bfloat16()


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """As near as rounding to bfloat16 allows, of sums of many products."""
    return bool(torch.allclose(found.float(), expected.float(), rtol=2e-2, atol=2e-2))


def normed(x: torch.Tensor, weight: torch.Tensor, from_one: bool = False) -> torch.Tensor:
    scale = weight.float() + 1 if from_one else weight.float()
    return rms_norm(x.float(), scale.shape, scale, 1e-6)


DEALS = [
    Deal(blocks=1),
    Deal(blocks=3),
    Deal(blocks=64),
    Deal(split=2, blocks=4),
    Deal(split=4, blocks=8),
    Deal(split=8, blocks=8),
    Deal(blocks=2, shared=60_000),  # several rounds
]


@pytest.mark.parametrize("deal", DEALS, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 8, 32])
def test_a_product_is_torchs(library: ctypes.CDLL, deal: Deal, tokens: int) -> None:
    torch.manual_seed(0)
    depth = 576 if deal.shared == ONE_BLOCK else 384
    weight, x, bias = some(112, depth, scale=0.05), some(tokens, depth), some(112)
    output = torch.full((tokens, 112), torch.nan, dtype=torch.bfloat16)
    assert run(library, product_of(weight, x, output, bias=bias), STORE, deal) == 0
    expected = linear(x.float(), weight.float(), bias.float())
    assert near(output, expected)
    assert not near(output, expected + 0.2)


@pytest.mark.parametrize("split", [1, 4])
@pytest.mark.parametrize("tokens", [1, 5, 17])
def test_a_product_is_added_to_the_residual(library: ctypes.CDLL, split: int, tokens: int) -> None:
    torch.manual_seed(1)
    weight, x, residual = some(64, 512, scale=0.05), some(tokens, 512), some(tokens, 64)
    expected = residual.float() + linear(x.float(), weight.float())
    before = residual.clone()
    product = product_of(weight, x, residual)
    assert run(library, product, ADD, Deal(split=split, blocks=3 * split)) == 0
    assert near(residual, expected)
    assert not near(before, expected)


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("from_one", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 4, 13])
def test_gate_and_up_are_of_the_norm(
    library: ctypes.CDLL, split: int, from_one: bool, tokens: int
) -> None:
    torch.manual_seed(2)
    weight, norm = some(2 * 72, 448, scale=0.05), some(448)
    x = some(tokens, 448, scale=3.0)
    output = torch.full((tokens, 72), torch.nan, dtype=torch.bfloat16)
    product = product_of(weight, x, output, norm=norm, from_one=from_one, gelu=from_one)
    assert run(library, product, GATE, Deal(split=split, blocks=4)) == 0
    left, right = linear(normed(x, norm, from_one), weight.float()).chunk(2, dim=-1)
    activated = gelu(left, approximate="tanh") if from_one else silu(left)
    assert near(output, activated * right)
    other = silu(left) if from_one else gelu(left, approximate="tanh")
    assert not near(output, other * right)


@dataclass(slots=True)
class Paged:
    """Tokens of as many sequences, and where their keys and values belong."""

    start: torch.Tensor
    indices: torch.Tensor
    positions: torch.Tensor
    page_size: int = 16

    def slots(self) -> list[tuple[int, int]]:
        places = zip(self.start.tolist(), self.positions.tolist(), strict=False)
        return [
            (int(self.indices[start + at // self.page_size]), at % self.page_size)
            for start, at in places
        ]


def paged(tokens: int) -> Paged:
    counts = torch.tensor([1 + i % 3 for i in range(tokens)])
    start = torch.cat((torch.zeros(1), counts.cumsum(0))).int()
    indices = (torch.randperm(int(counts.sum())) + 1).int()
    return Paged(start, indices, (counts * 16 - 1 - torch.arange(tokens) % 16).int())


def rotated(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """`[tokens, heads, dim]` by `[tokens, dim]`: cosines, then sines."""
    cosine, sine = (part[:, None] for part in angles.chunk(2, dim=-1))
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("tokens", [1, 6, 20])
def test_heads_are_rotated_and_stored(
    library: ctypes.CDLL, head_dim: int, fp8: bool, tokens: int
) -> None:
    torch.manual_seed(3)
    heads, kv_heads, depth = 3, 2, 256
    out = (heads + 2 * kv_heads) * head_dim
    weight, norm, bias = some(out, depth, scale=0.1), some(depth), some(out)
    x, rows = some(tokens, depth), paged(tokens)
    angle = torch.rand(tokens, head_dim // 2) * 6
    angles = torch.cat((angle.cos(), angle.sin()), dim=-1).contiguous()
    kept_type = torch.float8_e4m3fn if fp8 else torch.bfloat16
    pages = torch.zeros(2, len(rows.indices) + 1, rows.page_size, kv_heads, head_dim)
    kept = pages.to(kept_type)
    queries = torch.full((tokens, heads * head_dim), torch.nan, dtype=torch.bfloat16)
    product = product_of(
        weight,
        x,
        queries,
        bias=bias,
        norm=norm,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_size=rows.page_size,
        angles=angles.data_ptr(),
        page_start=rows.start.data_ptr(),
        page_indices=rows.indices.data_ptr(),
        positions=rows.positions.data_ptr(),
        keys=kept[0].data_ptr(),
        values=kept[1].data_ptr(),
        fp8=fp8,
    )
    assert run(library, product, HEADS, Deal(split=2, blocks=6)) == 0
    whole = linear(normed(x, norm), weight.float(), bias.float()).view(tokens, -1, head_dim)
    turned, value = rotated(whole[:, : heads + kv_heads], angles), whole[:, heads + kv_heads :]
    assert near(queries.view(tokens, heads, head_dim), turned[:, :heads])
    assert not near(queries.view(tokens, heads, head_dim), whole[:, :heads])
    expected = pages.clone()
    for token, (page, slot) in enumerate(rows.slots()):
        expected[0, page, slot] = turned[token, heads:]
        expected[1, page, slot] = value[token]
    if fp8:
        # three bits of mantissa: half a step is a sixteenth
        assert torch.allclose(kept.float(), expected, rtol=0.07, atol=0.02)
    else:
        assert near(kept, expected)
    assert not near(kept[0], expected[1])


def test_tokens_that_do_not_fit_are_refused(library: ctypes.CDLL) -> None:
    weight, x, output = some(32, 1024), some(32, 1024), some(32, 32)
    product = product_of(weight, x, output)
    assert run(library, product, STORE, Deal(shared=45_000)) == 2
    assert run(library, product, STORE, Deal(split=4, shared=45_000)) == 0


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        (
            "norm_tokens(p, shared, holding, units);\n  __syncthreads();",
            "norm_tokens(p, shared, holding, units);",
        ),
        ("  card::wait_for_copies();\n", ""),
        ("card::read_constant(below + 32)", "card::read_constant(below)"),
        ("highest = ((of_round + 1) * units * kWarps - 1) / total;", "highest = lowest;"),
    ],
    ids=["no barrier", "no wait for copies", "wrong half", "parts left out"],
)
def test_a_wrong_kernel_is_found(tmp_path: Path, part: str, instead: str) -> None:
    native = tmp_path / "native"
    native.mkdir()
    text = (NATIVE / "decode_products.cuh").read_text()
    assert text.count(part) == 1
    (native / "decode_products.cuh").write_text(text.replace(part, instead))
    wrong = build(tmp_path, native)
    with pytest.raises(AssertionError):
        test_gate_and_up_are_of_the_norm(wrong, 1, False, 4)
