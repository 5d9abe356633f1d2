"""When each token of a window is said: the cheapest path through what tokens attend to.

Source: `dtw` of openai/whisper (timing.py), as transformers has it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP = 0.02  # seconds of a state
DIAGONAL, DOWN, RIGHT = 0, 1, 2


def token_times(attention: NDArray[np.float32]) -> list[float]:
    """Seconds of a window at which each token begins; attention is `[tokens, states]`."""
    tokens, states = attention.shape
    trace = _trace(-attention.astype(np.float64))
    begins = [0] * tokens
    row, column = tokens, states
    while row > 0 or column > 0:
        begins[row - 1] = column - 1  # the last one written is the first of its row
        step = RIGHT if row == 0 else DOWN if column == 0 else trace[row, column]
        row -= step != RIGHT
        column -= step != DOWN
    return [max(0, begin) * STEP for begin in begins]


def _trace(cost: NDArray[np.float64]) -> NDArray[np.int8]:
    """From where each place is reached most cheaply, a diagonal of places at a time.

    Sums are float32, and of equal ones that from the left is taken, as there.
    """
    tokens, states = cost.shape
    whole = np.full((tokens + 1, states + 1), np.inf, dtype=np.float32)
    trace = np.full((tokens + 1, states + 1), RIGHT, dtype=np.int8)
    whole[0, 0] = 0
    for diagonal in range(2, tokens + states + 1):
        rows = np.arange(max(1, diagonal - states), min(tokens, diagonal - 1) + 1)
        columns = diagonal - rows
        across, above = whole[rows - 1, columns - 1], whole[rows - 1, columns]
        left = whole[rows, columns - 1]
        took = np.where((above < across) & (above < left), DOWN, RIGHT)
        took = np.where((across < above) & (across < left), DIAGONAL, took)
        before = np.choose(took, (across, above, left))
        whole[rows, columns] = cost[rows - 1, columns - 1] + before
        trace[rows, columns] = took
    return trace
