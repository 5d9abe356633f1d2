"""Configuration: dataclasses give types and documentation, YAML gives values, Hydra composes them."""
