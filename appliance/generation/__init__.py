"""From a checked request to running answers."""
