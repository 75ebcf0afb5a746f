"""Compiled kernels and their cache. ``kernel`` is the one decorator every compiled function wears."""

from __future__ import annotations

from keystone.kernels.compiler import callee, inline, kernel, piece

__all__ = ["callee", "inline", "kernel", "piece"]
