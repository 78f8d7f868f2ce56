"""Whether a request was meant for this server, and comes from its own page where it comes from a page.

A page of another site can have its name resolved to this machine, and would then be of the same origin as this server
(DNS rebinding): its requests carry that name as Host. An address as Host can't be such a name."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from gemma_cli.edge.failures import NOT_ALLOWED, Refusal
from gemma_cli.edge.listening import is_loopback

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@\s]+)(?::\d{1,5})?")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
"""What clients can send as the name of a host: other letters arrive in ASCII (xn--...)."""


@dataclass(frozen=True, slots=True)
class Names:
    """allowed: names without a port. addresses: whether any address is a name of the server, not only loopback's."""

    allowed: frozenset[str]
    addresses: bool

    def refusal(self, headers: Headers) -> Refusal | None:
        """Why a request is turned away; None: it is not."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._known(hosts[0]):
            named = hosts[0] if hosts else "none"
            return Refusal(NOT_ALLOWED, f"Host: {named!r} is no name of this server; --allow-host adds one")
        origin = headers.get("origin")
        if origin is not None and not _same(origin, hosts[0]):
            return Refusal(NOT_ALLOWED, f"Origin: pages of {origin!r} may not ask here")
        return None

    def _known(self, host: str) -> bool:
        matched = _HOST.fullmatch(host)
        if matched is None:
            return False
        name = _plain(matched[1])
        address = _address(name)
        return name in self.allowed or (address is not None and (self.addresses or address.is_loopback))


def names(host: str, others: Iterable[str]) -> Names:
    """The names of a server that listens on `host`. Raises `InvalidInputError` for another one that no request could
    call it by."""
    allowed = {"localhost", _plain(host)}
    for other in others:
        name = _plain(other)
        if _address(name) is None and not _NAME.fullmatch(name):
            from gemma_cli.rag import InvalidInputError

            raise InvalidInputError(
                f"allow_host: {other!r} is no name of a host; give the name alone, without scheme and port"
            )
        allowed.add(name)
    return Names(frozenset(allowed), addresses=not is_loopback(host))


def _plain(host: str) -> str:
    """A name or an address in the one form that is compared."""
    name = host.strip("[]").lower().removesuffix(".")
    return str(_address(name) or name)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _same(origin: str, host: str) -> bool:
    """Whether a page has the origin of this server. The scheme may differ where a proxy speaks TLS for it."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def from_another_site(headers: Headers) -> bool:
    """Whether a browser says that another site made it ask; that comes without an Origin for images and the like."""
    return headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
