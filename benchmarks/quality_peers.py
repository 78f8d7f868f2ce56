"""Other libraries' hybrid search on given vectors: `python quality_peers.py --peer lancedb FOLDER`.

Runs in an environment that has the peer, and imports nothing of this project; `bench_quality.py` starts it. FOLDER
holds `corpora.json` (a list of `texts` and `questions`) and `vectors.npz` (`texts0`, `questions0`, `texts1`, ...:
float32, rows of length 1). Writes `PEER.json` there: the versions, and for each system, corpus and question the
positions found, best first. Exits with `MISSING` where the peer is not installed.

Each peer as its documentation has it, with one kindness: before fusing, its two searches return `LEG` hits each and not
just the ten that are asked for. txtai does that by itself.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

MISSING = 3
DEPTH = 10
LEG = 50

Rankings = dict[str, list[list[int]]]


@dataclass(frozen=True)
class Corpus:
    """Texts and questions with their vectors, float32 [n, dimension]."""

    texts: list[str]
    questions: list[str]
    text_vectors: Any
    question_vectors: Any


def lancedb(corpus: Corpus) -> Rankings:
    """A table with its full-text index; hybrid queries with the default reranker and with the weighted one."""
    import lancedb  # type: ignore[import-not-found]
    from lancedb.index import FTS  # type: ignore[import-not-found]
    from lancedb.rerankers import LinearCombinationReranker, RRFReranker  # type: ignore[import-not-found]

    rows = [
        {"position": position, "text": text, "vector": vector}
        for position, (text, vector) in enumerate(zip(corpus.texts, corpus.text_vectors, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        table = lancedb.connect(folder).create_table("memories", rows)
        table.create_index("text", config=FTS())

        def hybrid(text: str, vector: Any, reranker: Any) -> list[int]:
            asked = table.search(query_type="hybrid").vector(vector).text(text).distance_type("cosine")
            return [row["position"] for row in asked.rerank(reranker).limit(LEG).to_list()[:DEPTH]]

        asked = list(zip(corpus.questions, corpus.question_vectors, strict=True))
        return {
            "LanceDB hybrid, RRF": [hybrid(text, vector, RRFReranker()) for text, vector in asked],
            "LanceDB hybrid, weighted": [hybrid(text, vector, LinearCombinationReranker()) for text, vector in asked],
            "LanceDB full text": [
                [row["position"] for row in table.search(text, query_type="fts").limit(DEPTH).to_list()]
                for text in corpus.questions
            ],
        }


def llamaindex(corpus: Corpus) -> Rankings:
    """`QueryFusionRetriever` (reciprocal rerank, no generated queries) over a vector index and `BM25Retriever`."""
    from llama_index.core import VectorStoreIndex  # type: ignore[import-not-found]
    from llama_index.core.base.embeddings.base import BaseEmbedding  # type: ignore[import-not-found]
    from llama_index.core.llms import MockLLM  # type: ignore[import-not-found]
    from llama_index.core.retrievers import QueryFusionRetriever  # type: ignore[import-not-found]
    from llama_index.core.retrievers.fusion_retriever import FUSION_MODES  # type: ignore[import-not-found]
    from llama_index.core.schema import TextNode  # type: ignore[import-not-found]
    from llama_index.retrievers.bm25 import BM25Retriever  # type: ignore[import-not-found]

    known: dict[str, list[float]] = dict(zip(corpus.questions, corpus.question_vectors.tolist(), strict=True))

    class Given(BaseEmbedding):  # type: ignore[misc]
        """The vectors that were given; nodes carry theirs already."""

        def _get_query_embedding(self, query: str) -> list[float]:
            return known[query]

        def _get_text_embedding(self, text: str) -> list[float]:
            raise KeyError(text)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return known[query]

    nodes = [
        TextNode(id_=str(position), text=text, embedding=vector)
        for position, (text, vector) in enumerate(zip(corpus.texts, corpus.text_vectors.tolist(), strict=True))
    ]
    leg = min(LEG, len(nodes))
    index = VectorStoreIndex(nodes, embed_model=Given())
    words = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=leg)
    fused = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=leg), words],
        llm=MockLLM(),
        mode=FUSION_MODES.RECIPROCAL_RANK,
        similarity_top_k=DEPTH,
        num_queries=1,
        use_async=False,
    )

    def asked(retriever: Any) -> list[list[int]]:
        return [[int(hit.node.node_id) for hit in retriever.retrieve(q)[:DEPTH]] for q in corpus.questions]

    return {"LlamaIndex fusion, RRF": asked(fused), "LlamaIndex BM25": asked(words)}


def txtai(corpus: Corpus) -> Rankings:
    """`Embeddings` with `hybrid=True`, and with `keyword=True`; the vectors come from an external function."""
    from txtai.embeddings import Embeddings  # type: ignore[import-not-found]

    vectors = dict(zip(corpus.texts, corpus.text_vectors, strict=True))
    vectors |= dict(zip(corpus.questions, corpus.question_vectors, strict=True))

    def given(texts: list[str]) -> Any:
        return np.stack([vectors[text] for text in texts])

    def asked(embeddings: Any) -> list[list[int]]:
        embeddings.index([(position, text, None) for position, text in enumerate(corpus.texts)])
        return [[int(found) for found, _ in hits] for hits in embeddings.batchsearch(corpus.questions, DEPTH)]

    return {
        "txtai hybrid": asked(Embeddings(method="external", transform=given, hybrid=True)),
        "txtai keyword": asked(Embeddings(keyword=True)),
    }


PEERS: dict[str, tuple[Callable[[Corpus], Rankings], tuple[str, ...]]] = {
    "lancedb": (lancedb, ("lancedb",)),
    "llamaindex": (llamaindex, ("llama-index-core", "llama-index-retrievers-bm25", "bm25s")),
    "txtai": (txtai, ("txtai", "faiss-cpu")),
}
"""Each peer: what runs it, and the distributions that it needs."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", choices=PEERS, required=True)
    options = parser.parse_args()
    run, needed = PEERS[options.peer]
    try:
        versions = {name: metadata.version(name) for name in needed}
    except metadata.PackageNotFoundError as error:
        print(f"{options.peer} is not installed here: {error}", file=sys.stderr)
        return MISSING
    stored = np.load(options.folder / "vectors.npz")
    read = json.loads((options.folder / "corpora.json").read_text(encoding="utf-8"))
    found: dict[str, list[list[list[int]]]] = {}
    for number, texts in enumerate(read):
        corpus = Corpus(texts["texts"], texts["questions"], stored[f"texts{number}"], stored[f"questions{number}"])
        for system, rankings in run(corpus).items():
            found.setdefault(system, []).append(rankings)
    report = {"versions": versions, "rankings": found}
    (options.folder / f"{options.peer}.json").write_text(json.dumps(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
