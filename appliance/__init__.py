"""Serving appliance for multimodal language models: launcher, configuration, endpoint."""

__version__ = "0.1.0"
