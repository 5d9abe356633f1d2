"""The shapes that the demo model names, as outlines inside the unit circle."""

from __future__ import annotations

import math

Point = tuple[float, float]

NAMES = ["circle", "cross", "heart", "square", "star", "triangle"]


def outline(name: str) -> list[Point]:
    """Return the corners of a shape of radius 1, upright, y pointing down."""
    if name == "circle":
        return _ring(64, 1.0)
    if name == "square":
        half = math.sqrt(0.5)
        return [(-half, -half), (half, -half), (half, half), (-half, half)]
    if name == "triangle":
        return _ring(3, 1.0)
    if name == "star":
        outer, inner = _ring(5, 1.0), _ring(5, 0.42, half_step=True)
        return [point for pair in zip(outer, inner, strict=True) for point in pair]
    if name == "cross":
        a, b = 0.95, 0.3
        return [
            (-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b),
            (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b),
        ]  # fmt: skip
    if name == "heart":
        # the classical curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t
        steps = [2 * math.pi * step / 64 for step in range(64)]
        return [
            (
                16 * math.sin(t) ** 3 / 17,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 17,
            )
            for t in steps
        ]
    raise ValueError(name)


def placed(name: str, x: float, y: float, radius: float, angle: float) -> list[Point]:
    """Return the corners of a shape around (x, y), turned by `angle` radians."""
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    return [(x + px * cos - py * sin, y + px * sin + py * cos) for px, py in outline(name)]


def _ring(corners: int, radius: float, half_step: bool = False) -> list[Point]:
    turn = math.pi / corners if half_step else 0.0
    angles = [2 * math.pi * step / corners + turn - math.pi / 2 for step in range(corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]
