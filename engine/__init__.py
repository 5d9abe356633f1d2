"""Paged-attention engine: scheduler, pages, runner, sampler. Imports nothing of `appliance`."""
