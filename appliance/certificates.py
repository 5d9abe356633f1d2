"""TLS for the endpoint: a certificate and its key in files, read again when they are renewed."""

from __future__ import annotations

import logging
import ssl

from appliance.config.errors import ConfigurationError
from appliance.config.schema import ServerConfig

logger = logging.getLogger("appliance.certificates")


class Certificate:
    """The context of every connection; what it holds may be renewed. Raises ConfigurationError."""

    def __init__(self, certificate: str, key: str) -> None:
        self._files = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        load(self.context, certificate, key)

    def renew(self) -> None:
        """Read the files again; new connections get what they hold, if it is right."""
        try:
            load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self._files)  # it may be half written
            load(self.context, *self._files)
        except ConfigurationError as fault:
            logger.error("the certificate stays as it was: %s", fault)
        else:
            logger.info("certificate renewed")


def certificate_of(server: ServerConfig) -> Certificate | None:
    """What `server` names; None where it has no TLS. Raises ConfigurationError."""
    certificate, key = server.tls_certificate, server.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        given, missing = ("tls_certificate", "tls_key")[:: 1 if key is None else -1]
        raise ConfigurationError(f"server.{given} needs server.{missing} beside it")
    if server.uds is not None:
        raise ConfigurationError("server.tls_certificate and server.uds exclude each other")
    return Certificate(certificate, key)


def load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Read files into a context. Raises ConfigurationError in words that name the file at fault."""
    for name, path in (("certificate", certificate), ("key", key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as fault:
            why = fault.strerror or "it cannot be read"
            raise ConfigurationError(f"server.tls_{name}={path}: {why.lower()}") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as fault:
        if isinstance(fault, ssl.SSLError) and fault.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(
                f"server.tls_key={key} is not the key of server.tls_certificate={certificate}"
            ) from None
        raise ConfigurationError(
            f"server.tls_certificate={certificate} and server.tls_key={key} must be a certificate, "
            "its chain behind it, and a key without a password, in PEM form"
        ) from None


def _no_password() -> str:
    """In place of a question on the terminal."""
    return ""
