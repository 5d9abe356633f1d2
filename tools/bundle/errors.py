"""Why a bundle cannot be made."""

from __future__ import annotations


class BundleError(Exception):
    """One line for whoever makes the bundle."""
