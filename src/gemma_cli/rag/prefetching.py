"""Which query will probably come next, and whether asking it ahead pays: the policy behind `QueryOptimizer`."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

LEARNED_KEYS: Final = 512
"""Keys whose successors are remembered, and keys whose calls are."""

SUCCESSORS: Final = 4
"""Candidates for each key: enough to find any successor that comes in more than a fifth of the cases."""

CONFIDENT: Final = 3
"""Times that a successor must have been seen ..."""

MAJORITY: Final = 0.5
"""... and the share of all its predecessor's successors that it must have."""

MEMORY: Final = 64
"""Successors of one key after which all its counts are halved, so that a new habit can displace an old one."""

OUTSTANDING: Final = 8
"""Prefetched answers that may lie unused; one more, and the oldest is written off."""

PAYS: Final = 0.25
"""Share of used prefetches (recent ones weigh most) below which prefetching stops ..."""

PROBE: Final = 16
"""... but for one occasion in so many, which would show that the pattern is back."""

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function, its arguments and its keyword arguments."""

T = TypeVar("T")


class Prefetcher:
    """Learns which key follows which, and whether acting on it pays. Bounded in every direction."""

    def __init__(self) -> None:
        self.likely: Hashable | None = None
        self.calls: OrderedDict[Hashable, Call] = OrderedDict()
        self.issued = 0
        self.used = 0
        self._last: Hashable | None = None
        self._followers: OrderedDict[Hashable, _Followers] = OrderedDict()
        self._worth = 1.0
        self._refused = 0
        self._outstanding: deque[Ticket] = deque()

    def saw(self, key: Hashable, call: Call) -> None:
        """A query for `key` came. `likely` is then the key that will probably be next, if there is one."""
        if self._last is not None and self._last != key:
            _bounded(self._followers, self._last, self._followers.get(self._last) or _Followers()).add(key)
        _bounded(self.calls, key, call)
        self._last = key
        followers = self._followers.get(key)
        likely = followers.likely() if followers is not None else None
        self.likely = likely if likely in self.calls else None

    def ticket(self) -> "Ticket | None":
        """The permission for one prefetch, or None while it does not pay."""
        if self._worth < PAYS:
            self._refused += 1
            if self._refused % PROBE:
                return None
        self.issued += 1
        ticket = Ticket(self)
        self._outstanding.append(ticket)
        if len(self._outstanding) > OUTSTANDING:
            self._outstanding[0].settle(used=False)
        return ticket

    def settled(self, ticket: "Ticket", used: bool) -> None:
        self._outstanding.remove(ticket)
        self.used += used
        self._worth += 0.1 * (used - self._worth)


@dataclass(slots=True, eq=False)
class Ticket:
    """One prefetch, which turns out to be of use or not: whatever is said of it first holds."""

    prefetcher: Prefetcher
    open: bool = True

    def settle(self, *, used: bool) -> None:
        if self.open:
            self.open = False
            self.prefetcher.settled(self, used)


class _Followers:
    """The keys that come most often after one key (the heavy hitters of Misra and Gries, 1982, aged by halving)."""

    __slots__ = ("best", "counts", "total")

    def __init__(self) -> None:
        self.best: Hashable | None = None
        self.counts: dict[Hashable, float] = {}
        self.total = 0.0

    def add(self, key: Hashable) -> None:
        self.total += 1
        count = self.counts.get(key, 0.0) + 1
        if count > 1 or len(self.counts) < SUCCESSORS:
            self.counts[key] = count
            if self.best not in self.counts or count > self.counts[self.best]:
                self.best = key
        else:
            self.counts = {known: count - 1 for known, count in self.counts.items() if count > 1}
        if self.total >= MEMORY:
            self.total /= 2
            self.counts = {known: count / 2 for known, count in self.counts.items()}

    def likely(self) -> Hashable | None:
        count = self.counts.get(self.best, 0.0)
        return self.best if count >= CONFIDENT and count >= MAJORITY * self.total else None


def _bounded(table: OrderedDict[Hashable, T], key: Hashable, value: T) -> T:
    """Sets an entry, makes it the newest and drops the oldest where there are too many."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > LEARNED_KEYS:
        table.popitem(last=False)
    return value
