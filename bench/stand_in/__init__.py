"""What stands in for a card: FlashInfer in plain torch, and platforms that run it on any device.

On a card it is what FlashInfer's kernels are compared with; without one, tests take the path of a
CUDA device with it.
"""
