"""From a command line to a recipe that every room of the appliance accepts."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.config.compose import Composed, compose
from appliance.media.configured import media_policies


def compose_recipe(argv: Sequence[str], config_dirs: Sequence[str] = ()) -> Composed:
    """Compose `key=value` and `group=option` overrides; raises ConfigurationError with one line.

    `config` knows types and ranges; what a value means is checked by those who read it.
    """
    composed = compose(argv, config_dirs)
    media_policies(composed.config.media)
    return composed
