"""Count the lines of a buffer."""

# mypy: ignore-errors

import numpy as np

from keystone.kernels.compiler import kernel


@kernel
def count_lines(text, size):
    """Line feeds in ``text[:size]`` (uint8, read-only)."""
    lines = np.int64(0)
    for i in range(size):
        lines += text[i] == 10
    return lines


def warm_up() -> None:
    """Compile, or load, ``count_lines``."""
    count_lines(np.frombuffer(b"\n", np.uint8), 1)
