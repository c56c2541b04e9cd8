"""A copy of a checkpoint with a larger vocabulary, for `vllm bench latency`, which draws token ids below 10 000.

The added rows of the embedding and of the output head are zero: what is computed is as large as the vocabulary says,
and both sides of the benchmark compute it.
"""

import json
import math
import shutil
from pathlib import Path

VOCABULARY = 10_240
OF_THE_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def pad_model(source, target, vocabulary=VOCABULARY):
    """Write the padded copy of the model in folder `source` to the new folder `target`."""
    source, target = Path(source), Path(target)
    target.mkdir(parents=True)
    for path in source.glob("*.json"):
        shutil.copy(path, target)
    config = json.loads((source / "config.json").read_text())
    config["vocab_size"] = vocabulary
    (target / "config.json").write_text(json.dumps(config, indent=2))
    padded = pad_tensors((source / "model.safetensors").read_bytes(), vocabulary)
    (target / "model.safetensors").write_bytes(padded)


def pad_tensors(content, vocabulary):
    """A safetensors file's bytes with zero rows added to the tensors OF_THE_VOCABULARY.

    The format: the header's length in 8 bytes, a JSON header {name: {dtype, shape, data_offsets}}, the tensors.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header, tensors, offset = json.loads(content[8:start]), [], 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        tensor = content[start + first : start + last]
        if name in OF_THE_VOCABULARY:
            rows, *columns = entry["shape"]
            row_bytes = len(tensor) // rows
            assert row_bytes % math.prod(columns) == 0, entry
            tensor += bytes((vocabulary - rows) * row_bytes)
            entry["shape"] = [vocabulary, *columns]
        entry["data_offsets"] = [offset, offset + len(tensor)]
        tensors.append(tensor)
        offset += len(tensor)
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *tensors])
