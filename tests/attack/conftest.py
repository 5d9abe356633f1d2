"""What attacks need: tiny checkpoints, and servers launched as a user would."""

from tests.serving.conftest import checkpoint as checkpoint
