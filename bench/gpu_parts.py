"""What is asked of a card, in order of value: is it right, then how fast is it."""

from __future__ import annotations

import math
import platform as machine
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench import gpu_decode
from bench.gpu_checks import Tried, hopper, kernel_checks, model_checks
from bench.gpu_demo import Demo, same
from bench.gpu_models import QWEN2_VL_2B, QWEN2_VL_7B, TINY, Shape
from bench.gpu_products import far_in_eight_bits, measure_products
from bench.gpu_rows import Row
from bench.gpu_serve import Serving
from bench.gpu_speed import TINY_SIZES, Limits, ShapeBench, Sizes, measure_limits, pays_from
from bench.gpu_tiny import FAMILIES
from bench.stand_in import torch_flashinfer
from bench.stand_in.platforms import Recording
from engine.layers.fp8 import Fp8Linear
from engine.running.platform import CudaPlatform

Rows = Iterator[Row]


@dataclass(slots=True, frozen=True)
class Part:
    """A share of the run: what it gives, and how long it may take."""

    name: str
    seconds: float  # without so much left it is not begun
    limit: float  # taken for hung after so long
    run: Callable[[Run], Rows]


class Run:
    """The platform under trial and what the parts share."""

    def __init__(self, folder: Path, *, tiny: bool) -> None:
        """`tiny` is on the CPU, with the torch implementation in FlashInfer's place.

        Checkpoints and logs are written to `folder`.
        """
        self.folder = folder
        self.tiny = tiny
        self.platform: Tried
        self.exact: Tried  # the same device with the torch implementation, for float32
        if tiny:
            torch.set_num_threads(1)
            self.platform = self.exact = Recording()
        else:
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            self.platform, self.exact = CudaPlatform(), CudaPlatform(library=torch_flashinfer)
        self.sizes = TINY_SIZES if tiny else Sizes()

    @property
    def card(self) -> str:
        return "CPU" if self.tiny else torch.cuda.get_device_name(self.platform.device)

    @property
    def title(self) -> str:
        """The machine and the versions, as one line of the result."""
        versions = []
        for package in ("torch", "transformers", "flashinfer-python"):
            try:
                versions.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                versions.append(f"{package} absent")
        return f"{self.card}, Python {machine.python_version()}, {', '.join(versions)}"

    @cached_property
    def limits(self) -> Limits:
        return measure_limits(self.platform, self.sizes)

    def shape_bench(self, shape: Shape) -> ShapeBench:
        """Measurements of a shape, the memory of earlier ones given back."""
        bench = ShapeBench(shape, self.folder / shape.name, self.platform, self.sizes)
        bench.collect()
        return bench


def kernels(run: Run) -> Rows:
    """Each kernel against torch. One that raises is a row like one that is wrong."""
    dtype = torch.float32 if run.tiny else torch.bfloat16
    right = count = 0
    for name, compare in kernel_checks(run.platform, run.exact, dtype):
        try:
            checks = compare()
        except Exception as error:
            if run.platform.lost():
                raise
            count += 1
            yield Row(name, f"failed: {said(error)}", "to run", False)
            continue
        for check in checks:
            count += 1
            right += check.passed
            if not check.passed:
                yield Row(check.name, f"{check.found:.2e}", f"{check.allowed:.2e}", False)
    yield Row("kernels equal to torch", f"{right} of {count}", "all", right == count)


def demo(run: Run) -> Rows:
    """Answers of a trained model: the card's, kernel by kernel and recorded, and the CPU's."""
    asked = Demo(run.platform, "float32" if run.tiny else "bfloat16")
    expected = asked.on_cpu()
    ways: dict[str, dict[str, Any]] = {
        "kernel by kernel": {"graphs": False},
        "recorded": {"graphs": True},
    }
    if hopper(run.platform):
        ways["by our products"] = {"graphs": False, "decode_products": "own"}
        ways["by our products, recorded"] = {"graphs": True, "decode_products": "own"}
    for name, options in ways.items():
        equal = same(expected, asked.on_device(**options))
        least = len(expected) if run.tiny else math.ceil(0.95 * len(expected))
        found = f"{equal} of {len(expected)}"
        yield Row(f"demo's answers as on the CPU, {name}", found, f"{least}", equal >= least)
    equal = same(expected, asked.on_device(graphs=False, quantization="fp8"))
    yield Row("demo's answers with weights of eight bits", f"{equal} of {len(expected)}")
    equal = same(expected, asked.on_device(graphs=False, shuffled=True))
    yield Row("demo's answers, wrong pages", f"{equal}", "few", equal < len(expected) / 2)


def logits(family: str, run: Run) -> Rows:
    """Of a tiny random model of the family, against transformers' forward."""
    pairs = [(run.exact, "float32", run.tiny)]
    if not run.tiny:
        pairs.insert(0, (run.platform, "bfloat16", True))
    for platform, dtype, graphs in pairs:
        for check in model_checks(family, run.folder / family, platform, (dtype,), graphs=graphs):
            aim = f"{'>' if check.control else '<'} {check.aim:.1e}"
            yield Row(check.name, f"{check.found:.1e}", aim, check.passed)


def limits(run: Run) -> Rows:
    """What the card does at its best."""
    yield Row("copy bandwidth", f"{run.limits.bandwidth / 1e9:,.0f} GB/s")
    yield Row("matmul rate, bfloat16", f"{run.limits.matmul_rate / 1e12:,.1f} TFLOP/s")


def speed(shape: Shape, run: Run) -> Rows:
    """Decode at the floor's share, idle time, prefill."""
    bench = run.shape_bench(shape)
    engine = bench.engine()
    taken = {}
    for batch in run.sizes.batches:
        seconds = taken[batch] = bench.decode_seconds(engine, batch)
        share = bench.decode_floor(batch, run.limits) / seconds
        aimed = shape is QWEN2_VL_7B and batch <= 32
        yield Row(
            f"{shape.name} decode, batch {batch}",
            f"{batch / seconds:,.0f} tok/s, {1e3 * seconds:.2f} ms, {share:.0%} of the floor",
            "80%" if aimed else "",
            share >= 0.8 if aimed else None,
        )
    if not run.tiny:
        for batch in (32, 128):
            part = 1 - bench.busy_seconds(engine, batch) / taken[batch]
            aimed = shape is QWEN2_VL_7B and batch == 32
            yield Row(
                f"{shape.name} card idle, batch {batch}",
                f"{part:.1%}",
                "5%" if aimed else "",
                part <= 0.05 if aimed else None,
            )
    tokens, operations = bench.prefill_rate(engine)
    share = operations / run.limits.matmul_rate
    aimed = shape is not TINY
    yield Row(
        f"{shape.name} prefill, {run.sizes.prefill} tokens",
        f"{tokens:,.0f} tok/s, {share:.0%} of the matmul rate",
        "60%" if aimed else "",
        share >= 0.6 if aimed else None,
    )


def profiles(shape: Shape, run: Run) -> Rows:
    """Which kernels take the time of decoding and of prefill."""
    bench = run.shape_bench(shape)
    engine = bench.engine()
    for what, found in bench.profiles(engine, run.sizes.batches[-2]):
        for kernel in found:
            spent = f"{kernel.share:.1%}, {kernel.calls} of {kernel.each:.0f} us"
            yield Row(f"{shape.name} {what}: {kernel.name}", spent)


def products(shape: Shape, run: Run) -> Rows:
    """The products of a decode step, each by itself."""
    run.shape_bench(shape)
    for product in measure_products(shape, run.platform, *((1 << 16,) if run.tiny else ())):
        share = product.bandwidth / run.limits.bandwidth
        found = f"{1e6 * product.seconds:.0f} us, {share:.0%} of the copy bandwidth"
        yield Row(f"{shape.name} {product.name}, {product.rows} rows", found)


def own_products(shape: Shape, run: Run) -> Rows:
    """Our products of a decoding step, right and from how many tokens on worth it."""
    bench = run.shape_bench(shape)
    platform = run.platform
    ours = gpu_decode.own_products(platform, shape)
    if ours is None:
        yield Row("our products", "not for this card")
        return
    worst = max(
        gpu_decode.compared(shape, tokens, ours, platform.device) for tokens in gpu_decode.TOKENS
    )
    allowed = torch.finfo(gpu_decode.DTYPE).eps  # two roundings
    name = f"{shape.name} our products, far from torch's"
    yield Row(name, f"{worst:.1e}", f"< {allowed:.1e}", worst < allowed)
    kernels, library = platform.kernels(), platform.library
    read = 1 if run.tiny else gpu_decode.READ
    for tokens in gpu_decode.TOKENS:
        by = [
            gpu_decode.layer_seconds(shape, platform, works, tokens, read)
            for works in (
                lambda step, layer: step.by_library(kernels, library, layer),
                lambda step, layer: step.by_ours(ours, layer),
            )
        ]
        found = f"library {1e6 * by[0]:.1f} us, ours {1e6 * by[1]:.1f} us"
        yield Row(f"{shape.name} layer without attention, {tokens} tokens", found)
        bench.collect()
    if run.tiny:
        return
    for tokens in gpu_decode.DEALT_TOKENS:
        for name, seconds, deal, least in gpu_decode.best_deals(shape, platform, tokens, read):
            found = f"{1e6 * seconds:.1f} us, {1e6 * least:.1f} us by {deal[0]} of {deal[1]}"
            yield Row(f"{shape.name} our {name}, {tokens} tokens", found)
        bench.collect()


def eight_bits(shape: Shape, run: Run) -> Rows:
    """Weights of eight bits: right, each product, and what it makes of decoding and prefill."""
    bench = run.shape_bench(shape)
    far, allowed = far_in_eight_bits(shape, run.platform), torch.finfo(torch.bfloat16).eps
    name = f"{shape.name} fp8 products, far from float32's"
    yield Row(name, f"{far:.1e}", f"< {allowed:.1e}", far < allowed)
    read = (1 << 16,) if run.tiny else ()
    for product in measure_products(shape, run.platform, *read, make=Fp8Linear):
        found = f"{1e6 * product.seconds:.0f} us with the tokens' rounding"
        yield Row(f"{shape.name} {product.name} in fp8, {product.rows} rows", found)
    bench.collect()
    engine = bench.engine(quantization="fp8")
    for batch in run.sizes.batches:
        seconds = bench.decode_seconds(engine, batch)
        found = f"{batch / seconds:,.0f} tok/s, {1e3 * seconds:.2f} ms"
        yield Row(f"{shape.name} decode in fp8, batch {batch}", found)
    tokens, operations = bench.prefill_rate(engine)
    share = operations / run.limits.matmul_rate
    found = f"{tokens:,.0f} tok/s, {share:.0%} of the bfloat16 matmul rate"
    yield Row(f"{shape.name} prefill in fp8, {run.sizes.prefill} tokens", found)


def host(shape: Shape, run: Run) -> Rows:
    """What the host does in a step of decoding, by its own functions."""
    bench = run.shape_bench(shape)
    engine = bench.engine()
    for batch in run.sizes.batches[-2:]:
        for function, seconds in bench.host(engine, batch):
            name = f"{shape.name} host, batch {batch}: {function}"
            yield Row(name, f"{1e6 * seconds:.0f} us a step")


def memory(shape: Shape, run: Run) -> Rows:
    """Pages measured against pages planned, and what recordings really take."""
    bench = run.shape_bench(shape)
    for what, found in bench.memory():
        yield Row(f"{shape.name} {what}", found)


def ablations(shape: Shape, run: Run) -> Rows:
    """Prefill by what every card has; decoding without graphs, without fused layers, with eight
    bits a key.
    """
    bench = run.shape_bench(shape)
    tokens, operations = bench.prefill_rate(bench.engine(prefill_attention="fa2"))
    share = operations / run.limits.matmul_rate
    found = f"{tokens:,.0f} tok/s, {share:.0%} of the matmul rate"
    yield Row(f"{shape.name} prefill by fa2, {run.sizes.prefill} tokens", found)
    bench.collect()
    ways: dict[str, dict[str, Any]] = {
        "kernel by kernel": {"graphs": False},
        "unfused, recorded": {"fuse": False},
        "fp8 pages": {"kv_dtype": "float8_e4m3fn"},
    }
    if hopper(run.platform):
        ways["by our products"] = {"decode_products": "own"}
    for name, changes in ways.items():
        if run.tiny and "kv_dtype" in changes:
            continue  # the torch implementation computes in the type of the pages
        engine = bench.engine(**changes)
        for batch in (run.sizes.batches[0], run.sizes.batches[len(run.sizes.batches) // 2]):
            seconds = bench.decode_seconds(engine, batch)
            found = f"{batch / seconds:,.0f} tok/s, {1e3 * seconds:.2f} ms"
            yield Row(f"{shape.name} decode {name}, batch {batch}", found)
        del engine
        bench.collect()


def short_prompts(shape: Shape, run: Run) -> Rows:
    """Short prompts kernel by kernel, and replayed between attentions."""
    bench = run.shape_bench(shape)
    most = max(run.sizes.short)
    found: dict[str, list[float]] = {}
    for name, limit in (("kernel by kernel", 0), ("recorded", most)):
        engine = bench.engine(graphs=True, prefill_graphs=limit)
        found[name] = [bench.prompt_seconds(engine, tokens) for tokens in run.sizes.short]
        del engine
        bench.collect()
    for tokens, *seconds in zip(run.sizes.short, *found.values(), strict=True):
        told = ", ".join(
            f"{name} {1e3 * each:.2f} ms" for name, each in zip(found, seconds, strict=True)
        )
        yield Row(f"{shape.name} prompt of {tokens} tokens", told)


def towers(shape: Shape, run: Run) -> Rows:
    """Pictures a second in the tower by torch's attention and by FlashInfer's."""
    bench = run.shape_bench(shape)
    seconds = {}
    for attention in ("sdpa", "flashinfer"):
        bench.collect()
        seconds[attention] = bench.tower_seconds(attention)
        for patches, each in seconds[attention].items():
            name = f"{shape.name} tower, {attention}, {patches} patches"
            yield Row(name, f"{1 / each:,.1f} images/s")
    least = pays_from(seconds["flashinfer"], seconds["sdpa"])
    found = "never" if least is None else f"engine.vision_attention_from={least}"
    yield Row(f"{shape.name} tower, flashinfer is faster from", found)
    bench.collect()
    launched = bench.picture_seconds()
    bench.collect()
    replayed = bench.picture_seconds(tower_graphs=True)
    for patches, each in launched.items():
        told = f"kernel by kernel {1e3 * each:.2f} ms, recorded {1e3 * replayed[patches]:.2f} ms"
        yield Row(f"{shape.name} tower, one picture of {patches} patches", told)


def peers(shape: Shape, run: Run) -> Rows:
    """Prompts in, answers out: ours, transformers' `generate`, its continuous batching."""
    bench = run.shape_bench(shape)
    batch = 2 if run.tiny else 32
    ours = bench.serving_rate(bench.engine(), batch)
    bench.collect()
    yield Row(f"{shape.name} prompts and answers, batch {batch}", f"{ours:,.0f} tok/s")
    rate = bench.transformers_generate(batch)
    yield Row(f"{shape.name} transformers' generate, batch {batch}", f"{rate:,.0f} tok/s")
    if run.tiny:
        return  # its continuous batching wants a card
    bench.collect()
    rate = bench.transformers_batching(batch)
    yield Row(
        f"{shape.name} transformers' continuous batching, batch {batch}",
        f"{rate:,.0f} tok/s, ours is {ours / rate:.1f} times that",
        "5 times",
        ours >= 5 * rate,
    )


def serving(run: Run) -> Rows:
    """The demo through the launcher and over HTTP; needs what the server needs."""
    missing = [name for name in ("hydra", "uvicorn", "av") if find_spec(name) is None]
    if missing:
        yield Row("served", f"left out: {' and '.join(missing)} not installed")
        return
    device = "cpu" if run.tiny else "cuda"
    shape = TINY if run.tiny else QWEN2_VL_2B
    yield from Serving(device, run.folder, 16 if run.tiny else 200, shape).rows()


def parts(*, tiny: bool) -> list[Part]:
    """All parts, most valuable first."""
    small, large = (TINY, TINY) if tiny else (QWEN2_VL_2B, QWEN2_VL_7B)
    found = [Part("kernels", 10, 60, kernels), Part("demo", 10, 60, demo)]
    found += [Part(f"logits of {name}", 10, 45, partial(logits, name)) for name in FAMILIES]
    found += [
        Part("limits", 2, 20, limits),
        Part(f"speed of {small.name}", 20, 60, partial(speed, small)),
    ]
    if not tiny:
        found.append(Part(f"speed of {large.name}", 30, 90, partial(speed, large)))
    shapes = (large,) if tiny else (large, small)
    for shape in shapes:
        found += [
            Part(f"profiles of {shape.name}", 20, 60, partial(profiles, shape)),
            Part(f"products of {shape.name}", 10, 60, partial(products, shape)),
            Part(f"our products of {shape.name}", 15, 60, partial(own_products, shape)),
        ]
    found += [
        Part("host", 20, 60, partial(host, small)),
        Part("memory", 20, 60, partial(memory, small)),
        *(
            Part(f"short prompts of {one.name}", 20, 90, partial(short_prompts, one))
            for one in shapes
        ),
        *(Part(f"ablations of {one.name}", 30, 120, partial(ablations, one)) for one in shapes),
        Part("towers", 20, 60, partial(towers, large)),
        *(Part(f"fp8 of {one.name}", 30, 120, partial(eight_bits, one)) for one in shapes),
        Part("serving", 60, 180, serving),
        Part("peers", 40, 120, partial(peers, large)),
    ]
    if tiny:  # others may work on the CPU too
        return [replace(part, limit=3 * part.limit) for part in found]
    return found


def said(error: BaseException) -> str:
    """The first line of what went wrong."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
