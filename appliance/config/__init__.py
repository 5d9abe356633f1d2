"""Configuration: dataclasses give types and help, YAML gives values, Hydra composes."""
