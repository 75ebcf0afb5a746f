"""Compiled kernels and their cache. Each compiled function wears one of the four decorators; ``warm`` makes all ready."""

from __future__ import annotations

from keystone.kernels.compiler import Warmth, callee, inline, kernel, piece, warm

__all__ = ["Warmth", "callee", "inline", "kernel", "piece", "warm"]
