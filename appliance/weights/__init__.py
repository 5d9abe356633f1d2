"""From `model.path` to a checkpoint folder on this machine."""
