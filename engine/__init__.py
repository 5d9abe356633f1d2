"""Paged-attention engine: scheduler, page pool, model runner and sampler. Imports nothing of `appliance`."""
