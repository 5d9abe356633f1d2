"""Attention over the page pool: one interface, one backend a device."""
