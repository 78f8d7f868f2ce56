"""Writes the reference vectors of the tests: `python tools/make_golden_vectors.py MODEL_DIRECTORY`.

Needs sentence-transformers. The texts stand in `tests/data/golden_vectors.json`; the vectors, float32 [texts, 384], go
to `golden_vectors.safetensors` beside it, their source to the JSON. Nothing of gemma-rag is used: a text that fits the
model goes through `SentenceTransformer.encode`; a longer one is cut here, into as few and as equal pieces of at most
254 tokens as it takes, and its vector is the pieces' mean weighted by tokens, brought back to length 1.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

DATA = Path(__file__).parents[1] / "tests" / "data"
CONTENT_TOKENS = 254


def vector(model: SentenceTransformer, text: str) -> np.ndarray:
    tokens = model.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    if len(tokens) <= CONTENT_TOKENS:
        return model.encode([text], normalize_embeddings=True, convert_to_numpy=True)[0]
    pieces = -(-len(tokens) // CONTENT_TOKENS)
    total = np.zeros(model.get_embedding_dimension(), np.float64)
    for number in range(pieces):
        piece = tokens[len(tokens) * number // pieces : len(tokens) * (number + 1) // pieces]
        ids = torch.tensor([[model.tokenizer.cls_token_id, *piece, model.tokenizer.sep_token_id]])
        with torch.inference_mode():
            output = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"][0]
        unit = output.numpy().astype(np.float64)
        total += len(piece) * unit / np.linalg.norm(unit)
    return (total / np.linalg.norm(total)).astype(np.float32)


def main(directory: str) -> None:
    model = SentenceTransformer(directory, device="cpu")
    path = DATA / "golden_vectors.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vectors = np.stack([vector(model, text) for text in content["texts"]])
    source = {
        "sentence-transformers": sentence_transformers.__version__,
        "torch": torch.__version__,
        "dtype": "float32",
        "machine": platform.machine(),
    }
    ordered = {"model": content["model"], "source": source, "texts": content["texts"]}
    path.write_text(json.dumps(ordered, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    save_file({"vectors": vectors}, path.with_suffix(".safetensors"))
    print(f"{len(vectors)} vectors of {vectors.shape[1]}")


if __name__ == "__main__":
    main(sys.argv[1])
