"""Errors the engine raises on purpose; their messages are written for people."""


class EngineError(Exception):
    """Base of the engine's own errors."""

    correctable = False  # by whoever started the engine: another setting, another checkpoint


class RequestRefused(EngineError):
    """The request can never run here (too long for the model or the page pool, contradictory)."""


class ConstraintFailed(EngineError):
    """An answer can no longer be held to what its request asked for; others go on."""


class ModelUnsupported(EngineError):
    """No family knows this checkpoint, or it lacks what the family needs."""

    correctable = True


class EngineDead(EngineError):
    """The engine process is gone; nothing that was running can be finished."""

    def __init__(self, reason: str, correctable: bool = False) -> None:
        super().__init__(reason)
        self.correctable = correctable


class DeviceMissing(EngineError):
    """The configured device, or something needed to use it, is not there."""

    correctable = True


class DeviceLost(EngineError):
    """The device failed while serving; this process cannot use it again."""
