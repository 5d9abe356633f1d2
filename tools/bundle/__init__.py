"""A bundle for a card machine that reaches no package index: `make bundle` (docs/gpu.md)."""
