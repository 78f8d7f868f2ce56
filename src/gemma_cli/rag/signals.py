"""What the index knows of every memory that a question asks about: one array a signal, to be weighted and added."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag import ranking
from gemma_cli.rag.actors import FIRST_PERSON_SHARE, NOBODY, Actors, meant
from gemma_cli.rag.blocks import Block, living_actors
from gemma_cli.rag.calendar_spans import fit
from gemma_cli.rag.candidates import Question
from gemma_cli.rag.memory import TIERS
from gemma_cli.rag.postings import Occurrences
from gemma_cli.rag.sessions import Neighbours, Sessions
from gemma_cli.rag.words import ASKS, CHUNK

Signal = NDArray[np.float32]

ABSENT: Final = np.float32(-np.inf)
"""The value of what is not there or was not computed."""

RARE: Final = 20
"""A term in fewer than a share of 1 in so many memories is looked at only where it can matter: sorting its places is
quicker then than passing over all."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A question's vector as int8 codes, and its products with the codes of each tier asked for, by their numbers."""

    codes: NDArray[np.int8]
    scale: np.float32
    products: Mapping[int, Signal]

    def nearness(self, tier: int, block: Block) -> Signal:
        """The cosines of a tier asked for, as far as codes tell."""
        return np.asarray(self.products[tier] * (block.scales[: block.used] * self.scale), np.float32)

    def nearness_of(self, block: Block, slots: NDArray[np.intp]) -> Signal:
        """The same for some slots of any tier, to the bit."""
        return np.asarray(block.products(self.codes[None], slots)[0] * (block.scales[slots] * self.scale), np.float32)


class Signals:
    """The signals of one question, float32, one entry for each slot (dead ones too) of the tiers asked for, tier after
    tier. A method gives None where its signal says nothing of any memory.

    The neighbours of a memory count whichever tiers they are in, so that it scores the same whichever are asked for.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        actors: Actors,
        sessions: Sessions,
        question: Question,
        probe: Probe | None,
        now: float,
    ) -> None:
        self.asked = [n for n, block in enumerate(blocks) if TIERS[n] in question.tiers and block.living]
        self._blocks = blocks
        self._question = question
        self._probe = probe
        self._now = now
        self._ends = np.cumsum([0] + [block.used for block in blocks]).tolist()
        weights = question.weights
        self._neighbours: Neighbours | None = None
        if weights.meaning_nearby or weights.words_nearby or weights.words_window:
            self._neighbours = sessions.neighbours(blocks)
        self._terms, self._named, self._by_first_person = question.terms, NOBODY, False
        if weights.actor:
            self._read_names(actors)

    def _read_names(self, actors: Actors) -> None:
        """Whom the question is about, and its terms without names, which memories about somebody leave out."""
        living = living_actors(self._blocks)
        names = actors.named(self._terms, living)
        telling = [term for term in self._terms.tolist() if term not in names]
        if telling:
            self._terms = np.array(telling, np.uint64)
        found = meant(names)
        if not found and self._question.first_person:
            found, self._by_first_person = actors.user(living), True
        if len(found) == 1:
            self._named = found.pop()

    def all(self) -> Iterator[tuple[str, Signal]]:
        """Each signal but the meaning that has a weight and says something, by the name of its weight."""
        for name, signal in _SIGNALS.items():
            if getattr(self._question.weights, name) and (values := signal(self)) is not None:
                yield name, values

    def column(self, name: str) -> NDArray[Any]:
        """One of the arrays of the blocks."""
        return np.concatenate([getattr(self._blocks[n], name)[: self._blocks[n].used] for n in self.asked])

    def meaning(self) -> Signal | None:
        """Cosines, as far as codes tell."""
        return None if self._near is None else self._joined(self._near)

    def words(self) -> Signal | None:
        return None if self._worded is None else self._joined(self._worded)

    def meaning_nearby(self) -> Signal | None:
        return self._nearby(self._near)

    def words_nearby(self) -> Signal | None:
        return self._nearby(self._worded)

    def words_window(self) -> Signal | None:
        """BM25 of the window around each memory, as if it were one document."""
        if self._found is None:
            return None
        if self._neighbours is None:  # each memory is a window of its own
            return self._in_need(self.words())
        windows = self._neighbours.windows
        mean_size = max(windows.words / sum(block.living for block in self._blocks), 1.0)
        scores = np.zeros(len(windows.line), np.float32)
        for t, share in enumerate(self._found.shares):
            terms = [of_block[t] for of_block in self._found.occurrences]
            places = np.concatenate([term.slots + start for term, start in zip(terms, self._ends[:-1], strict=True)])
            positions = windows.positions[places]
            counts = np.zeros(len(windows.line), np.float32)
            counts[positions] = np.concatenate([term.counts for term in terms])
            if RARE * len(places) < len(counts):
                hit = windows.around(positions)
                points = ranking.bm25_terms(windows.sums_at(counts, hit), windows.sizes[hit], mean_size)
                scores[hit] += np.float32(share) * points
            else:
                scores += np.float32(share) * ranking.bm25_terms(windows.sums(counts), windows.sizes, mean_size)
        return self._in_need(self._joined(scores[windows.positions]))

    def actor(self) -> Signal | None:
        if self._named == NOBODY:
            return None
        agreement = np.concatenate([self._blocks[n].agreement(self._named) for n in self.asked])
        # A long message speaks of many things, whoever wrote it; a name is meant, an "I" only may be.
        return agreement * self._need * np.float32(FIRST_PERSON_SHARE) if self._by_first_person else agreement

    def date(self) -> Signal | None:
        return fit(self._question.spans, self.column("times")) if self._question.spans else None

    def asks(self) -> Signal:
        return self._having(ASKS).astype(np.float32)

    def importance(self) -> Signal:
        return self.column("importance").astype(np.float32)

    def recency(self) -> Signal:
        return ranking.recency(self.column("times"), self._now)

    def _places(self, tier: int) -> slice:
        return slice(self._ends[tier], self._ends[tier + 1])

    def _joined(self, values: Signal) -> Signal:
        """What the tiers asked for have of the values of all."""
        return np.concatenate([values[self._places(n)] for n in self.asked])

    def _nearby(self, values: Signal | None) -> Signal | None:
        if values is None or self._neighbours is None:
            return None
        return self._in_need(np.concatenate([self._neighbours.better(values, self._places(n)) for n in self.asked]))

    def _in_need(self, values: Signal | None) -> Signal | None:
        return None if values is None else values * self._need

    @cached_property
    def _need(self) -> Signal:
        """How much each memory leans on its neighbours: a part of a document not at all."""
        return np.where(self._having(CHUNK), np.float32(0), ranking.need(self.column("lengths")))

    def _having(self, facet: int) -> NDArray[np.bool_]:
        return np.concatenate([self._blocks[n].having(facet) for n in self.asked])

    @cached_property
    def _near(self) -> Signal | None:
        """Cosines by place: of the tiers asked for and their neighbours; one more for what is not there."""
        if self._probe is None:
            return None
        near = np.full(self._ends[-1] + 1, ABSENT, np.float32)
        for n in self.asked:
            near[self._places(n)] = self._probe.nearness(n, self._blocks[n])
        if self._neighbours is not None and sum(self._blocks[n].used for n in self.asked) < self._ends[-1]:
            outside = self._neighbours.outside([self._places(n) for n in self.asked])
            for n, block in enumerate(self._blocks):
                mine = outside[(outside >= self._ends[n]) & (outside < self._ends[n + 1])]
                if len(mine):
                    near[mine] = self._probe.nearness_of(block, mine - self._ends[n])
        return near

    @cached_property
    def _found(self) -> "_Found | None":
        """Where the question's terms occur. How rare a term is follows from all tiers."""
        documents = sum(block.living for block in self._blocks)
        if not len(self._terms) or not documents or not self._question.weights.words:
            return None
        occurrences = [block.living_occurrences(self._terms) for block in self._blocks]
        containing = np.sum([[len(o.slots) for o in of_block] for of_block in occurrences], axis=0)
        idf = ranking.inverse_document_frequency(documents, containing)
        shares = (idf / ranking.bm25_ceiling(idf)).astype(np.float32).tolist()
        return _Found(occurrences, shares, max(sum(block.words for block in self._blocks) / documents, 1.0))

    @cached_property
    def _worded(self) -> Signal | None:
        """BM25 over its ceiling by place, as `_near`."""
        if self._found is None:
            return None
        scores = np.zeros(self._ends[-1] + 1, np.float32)
        scores[-1] = ABSENT
        for n in range(len(self._blocks)) if self._neighbours is not None else self.asked:
            block, mine = self._blocks[n], scores[self._places(n)]
            for share, term in zip(self._found.shares, self._found.occurrences[n], strict=True):
                if len(term.slots):
                    points = ranking.bm25_terms(term.counts, block.lengths[term.slots], self._found.mean_length)
                    mine[term.slots] += np.float32(share) * points
        return scores


@dataclass(frozen=True, slots=True)
class _Found:
    """The occurrences of each term in each block, what each term adds to a share of BM25's ceiling, and how many words
    a memory has on average."""

    occurrences: list[list[Occurrences]]
    shares: list[float]
    mean_length: float


_SIGNALS: Final[Mapping[str, Callable[[Signals], Signal | None]]] = MappingProxyType(
    {
        "words": Signals.words,
        "meaning_nearby": Signals.meaning_nearby,
        "words_nearby": Signals.words_nearby,
        "words_window": Signals.words_window,
        "actor": Signals.actor,
        "date": Signals.date,
        "question": Signals.asks,
        "importance": Signals.importance,
        "recency": Signals.recency,
    }
)
"""How each signal but the meaning is found, by the name of its weight."""
