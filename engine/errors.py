"""Errors the engine raises on purpose; their messages are written for people."""


class EngineError(Exception):
    """Base of the engine's own errors."""


class RequestRefused(EngineError):
    """The request can never run here (too long for the model or the page pool, contradictory)."""


class ModelUnsupported(EngineError):
    """No family knows this checkpoint, or it lacks what the family needs."""


class EngineDead(EngineError):
    """The engine process is gone; nothing that was running can be finished."""


class DeviceMissing(EngineError):
    """The configured device, or something needed to use it, is not there."""


class DeviceLost(EngineError):
    """The device failed while serving; this process cannot use it again."""
