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
        name = matched[1].strip("[]").lower().removesuffix(".")
        if name in self.allowed:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.addresses or address.is_loopback


def names(host: str, others: Iterable[str]) -> Names:
    """The names of a server that listens on `host`."""
    allowed = {"localhost", host.lower(), *(other.lower().removesuffix(".") for other in others)}
    return Names(frozenset(allowed), addresses=not is_loopback(host))


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
