"""What a media URL may lead to: pure functions over a URL, a policy, and a way to resolve names."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote, urljoin

from appliance.errors import ApplianceError, media_fetch_failed, media_not_allowed
from appliance.media.address import is_public
from appliance.media.data_url import is_data_url
from appliance.media.domains import DEFAULT_PORTS, read_domain, read_port
from appliance.media.host import is_address, read_host

logger = logging.getLogger("appliance.media")

Resolve = Callable[[str], Iterable[str]]  # a name to its addresses; raises OSError

LONGEST_URL = 8192
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
REMOTE = re.compile(r"//([^/?#]*)([^#]*)")
AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(.*))?")
AS_WRITTEN = "%/:?#[]@!$&'()*+,;=~-._"  # RFC 3986, 2.2 and 2.3
# Ends of names that mean no public host, for when a proxy resolves and no address can be checked:
# https://www.iana.org/assignments/special-use-domain-names, and what networks use by habit
PRIVATE_NAMES = ("localhost", "local", "internal", "home.arpa", "lan", "intranet", "corp", "home")


@dataclass(slots=True, frozen=True)
class MediaPolicy:
    """Where media of one modality may come from, how long that may take, and how much it may be."""

    modality: str
    allowed_domains: Sequence[str]
    allow_private: bool
    redirects: str  # deny, same_host, allowed_domains
    max_redirects: int
    schemes: Sequence[str]
    local_path: str | None
    proxy: str | None
    timeout: float
    max_bytes: int


@dataclass(slots=True, frozen=True)
class Target:
    """What a URL means: the host to name, the addresses that may be dialled, the path to ask for.

    `addresses` is empty before `check_addresses`, and where a proxy resolves the name. For a file
    `path` is its path, for `data` the whole URL; neither has a host.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = field(default="", repr=False)  # with the query, which may be a signature
    addresses: tuple[str, ...] = ()

    @property
    def authority(self) -> str:
        """Host and port as in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def read_url(url: str, policy: MediaPolicy, *, param: str = "url") -> Target:
    """What a URL means, if the policy allows it; no name is resolved. Raises ApplianceError."""
    if is_data_url(url):
        if "data" not in policy.schemes:
            raise _scheme_refused("data", policy, param)
        return Target("data", path=url)
    match = SCHEME.match(url)
    if match is None:
        raise _malformed("it has no scheme", policy, param)
    scheme, rest = match[1].lower(), url[match.end() :]
    if len(url) > LONGEST_URL:
        raise _malformed(f"it is longer than {LONGEST_URL} characters", policy, param)
    if not url.isprintable() or " " in url or "\\" in url:
        raise _malformed("it has spaces, control characters or backslashes", policy, param)
    if scheme == "file":
        if policy.local_path is None:
            raise _scheme_refused(scheme, policy, param)
        return Target(scheme, path=_file_path(rest, policy, param))
    if scheme not in DEFAULT_PORTS or scheme not in policy.schemes:
        raise _scheme_refused(scheme, policy, param)
    try:
        target = _remote(scheme, rest)
    except ValueError as wrong:
        raise _malformed(str(wrong), policy, param) from None
    _check_domain(target, policy, param)
    return target


def check_addresses(
    target: Target, policy: MediaPolicy, resolve: Resolve, *, param: str = "url"
) -> Target:
    """`target` with the addresses it may be dialled at, every one of them allowed.

    Behind a proxy, which resolves by itself, addresses in the URL are checked, and names only for
    being private by their form.
    """
    if not target.host:
        return target
    if is_address(target.host):
        addresses = [target.host]
    elif policy.proxy is not None:
        if not policy.allow_private and _is_private_name(target.host):
            raise _host_refused(target, "its name is a private one", policy, param)
        return target
    else:
        try:
            addresses = list(dict.fromkeys(resolve(target.host)))
        except OSError:
            addresses = []
        if not addresses:
            logger.info("media not fetched", extra=_about(target, "its name does not resolve"))
            raise media_fetch_failed(
                f"The host of the {policy.modality}'s URL was not found.", param, 502
            )
    refused = [address for address in addresses if not is_public(address)]
    if refused and not policy.allow_private:
        reason = f"its address {printable(refused[0])} is not public (media.allow_private)"
        raise _host_refused(target, reason, policy, param)
    return replace(target, addresses=() if policy.proxy else tuple(addresses))


def read_redirect(
    source: Target, location: str, hop: int, policy: MediaPolicy, *, param: str = "url"
) -> Target:
    """Where a redirect leads, the `hop`th of its item from 1 on; addresses are still unchecked."""
    if policy.redirects == "deny":
        raise _redirect_refused("redirects are not followed here", source, policy, param)
    if hop > policy.max_redirects:
        raise _redirect_refused("there are too many redirects", source, policy, param)
    if not location.isprintable() or " " in location or "\\" in location:
        raise _redirect_refused("it redirects to no valid URL", source, policy, param)
    try:
        url = urljoin(source.url, location)
    except ValueError:
        raise _redirect_refused("it redirects to no valid URL", source, policy, param) from None
    if url[:5].lower() in ("data:", "file:"):
        raise _redirect_refused("it redirects to another kind of URL", source, policy, param)
    target = read_url(url, policy, param=param)
    if source.scheme == "https" and target.scheme != "https":
        raise _redirect_refused("it redirects from https to http", source, policy, param)
    if policy.redirects == "same_host" and target.host != source.host:
        raise _redirect_refused("it redirects to another host", source, policy, param)
    return target


def printable(address: str) -> str:
    """An address for the log, whatever a resolver answered."""
    return address if address.isascii() and address.isprintable() else "that is no address"


def _remote(scheme: str, rest: str) -> Target:
    match = REMOTE.fullmatch(rest.partition("#")[0])
    if match is None or not match[1]:
        raise ValueError("it has no host")
    authority, path = match[1], match[2]
    if "@" in authority:
        raise ValueError("it carries a user name or password")
    parts = AUTHORITY.fullmatch(authority)
    if parts is None:
        raise ValueError("its host is not a name")
    host = read_host(parts[1])
    port = DEFAULT_PORTS[scheme] if parts[2] is None else read_port(parts[2])
    return Target(scheme, host, port, quote("/" * (path[:1] != "/") + path, safe=AS_WRITTEN))


def _file_path(rest: str, policy: MediaPolicy, param: str) -> str:
    match = REMOTE.fullmatch(rest)
    if match is None or match[1].lower() not in ("", "localhost") or not match[2]:
        raise _malformed("a file is written as file:///folder/name", policy, param)
    if "?" in match[2]:
        raise _malformed("a file's URL has no query", policy, param)
    try:
        path = unquote(match[2], errors="strict")
    except UnicodeDecodeError:
        raise _malformed("its path is not UTF-8", policy, param) from None
    if "\0" in path:
        raise _malformed("its path has a zero byte", policy, param)
    return path


def _check_domain(target: Target, policy: MediaPolicy, param: str) -> None:
    for entry in policy.allowed_domains:
        if read_domain(entry).covers(target.scheme, target.host, target.port):
            return
    if not policy.allowed_domains:
        logger.info("media refused", extra=_about(target, "media.allowed_domains is empty"))
        how = f" Send the {policy.modality} as a data: URL." if "data" in policy.schemes else ""
        raise media_not_allowed(f"This server fetches nothing from other hosts.{how}", param)
    raise _host_refused(target, "no entry of media.allowed_domains covers it", policy, param)


def _is_private_name(host: str) -> bool:
    return "." not in host or host.endswith(tuple(f".{name}" for name in PRIVATE_NAMES))


def _host_refused(target: Target, reason: str, policy: MediaPolicy, param: str) -> ApplianceError:
    logger.info("media refused", extra=_about(target, reason))
    return media_not_allowed(
        f"The {policy.modality}'s URL leads to a host that this server does not fetch from.", param
    )


def _scheme_refused(scheme: str, policy: MediaPolicy, param: str) -> ApplianceError:
    known = scheme if scheme in (*DEFAULT_PORTS, "data", "file") else "another kind"
    logger.info("media refused", extra={"fields": {"reason": f"its scheme is {known}"}})
    return media_not_allowed(
        f"The {policy.modality}'s URL is of a kind that this server does not take.", param
    )


def _redirect_refused(what: str, source: Target, policy: MediaPolicy, param: str) -> ApplianceError:
    logger.info("media refused", extra=_about(source, what))
    return media_not_allowed(f"The {policy.modality} could not be fetched: {what}.", param)


def _malformed(what: str, policy: MediaPolicy, param: str) -> ApplianceError:
    logger.info("media refused", extra={"fields": {"reason": what}})
    return media_not_allowed(f"The {policy.modality}'s URL is not accepted: {what}.", param)


def _about(target: Target, reason: str) -> dict[str, dict[str, str]]:
    return {"fields": {"host": f"{target.scheme}://{target.authority}", "reason": reason}}
