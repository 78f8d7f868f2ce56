"""How often one client may ask: a bucket of tokens for each address, which fills at a steady rate."""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gemma_cli.server.faults import TOO_MANY, Wait

CLIENTS: Final = 10_000
"""Addresses remembered; of more, those that asked last."""
NETWORK_BITS: Final = 64
"""Of an IPv6 address, the part that names a network (RFC 4291): in the rest, one machine may take any it likes."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float


class Rate:
    """per_second: requests from one address. burst: at once, after a rest. clock: seconds that never go back."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def refusal(self, client: str) -> Wait | None:
        """Counts a request; why it is turned away, or None."""
        now = self._clock()
        source = _source(client)
        bucket = self._buckets.setdefault(source, _Bucket(self._burst, now))
        self._buckets.move_to_end(source)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled) * self._rate)
        bucket.filled = now
        if bucket.tokens < 1:
            wait = (1 - bucket.tokens) / self._rate
            return Wait(TOO_MANY, f"more than {self._rate:g} requests a second from one address", wait)
        bucket.tokens -= 1
        return None


def _source(client: str) -> str:
    """What counts as one client: an IPv4 address, or a network of IPv6."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if address.version == 4:
        return client
    if address.ipv4_mapped is not None:  # as a socket for both kinds tells IPv4
        return str(address.ipv4_mapped)
    return f"{int(address) >> (address.max_prefixlen - NETWORK_BITS):x}"
