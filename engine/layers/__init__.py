"""Decoder stacks, fused and as transformers has them, and the operations they are made of."""
