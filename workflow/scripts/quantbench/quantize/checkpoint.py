"""What a checkpoint's safetensors headers say about it, and the small files that go along with it."""

import json
import math
import re
import shutil
import struct
from pathlib import Path

# Files of a model that the toolkit does not change. Copied, not saved anew: another transformers writes them otherwise.
COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
    "generation_config.json",
)  # fmt: skip

# A quantized layer's tensors that are not its weights: of the bias, of the activations, or the order of inputs.
NOT_WEIGHTS = ("bias", "input_scale", "input_zero_point", "input_global_scale", "weight_shape", "g_idx")

# A quantized layer's weight scales, as compressed-tensors, GPTQ and AWQ, and FP8 in blocks call them.
WEIGHT_SCALES = ("weight_scale", "scales", "weight_scale_inv")


def tensors(folder):
    """{tensor name: {"dtype", "shape", "bytes"}} of every safetensors file in a folder.

    A file begins with the header's length, 8 bytes little-endian, and the header, JSON (safetensors' format).
    """
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            found[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "bytes": end - begin}
    return found


def quantized_layers(found):
    """Names of the layers that carry a weight scale, so are quantized. `found` is what tensors() gave."""
    return {name.rpartition(".")[0] for name in found if name.rpartition(".")[2] in WEIGHT_SCALES}


def bits_per_weight(found, shapes):
    """Stored bits per weight of the quantized layers, with scales and zero points, without biases; None for no layer.

    shapes: {layer name: (output features, input features)} of the quantized layers.
    4-bit weights with one bf16 scale per 128: 4 + 16 / 128 = 4.125.
    """
    stored = sum(
        entry["bytes"]
        for name, entry in found.items()
        if name.rpartition(".")[0] in shapes and name.rpartition(".")[2] not in NOT_WEIGHTS
    )
    weights = sum(math.prod(shape) for shape in shapes.values())
    return 8 * stored / weights if weights else None


def safetensors_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def copy_companions(model_path, folder):
    """Put the model's own tokenizer and generation config beside the weights, byte for byte."""
    # The toolkit was given an empty one, because it refuses to save some that real models come with.
    (Path(folder) / "generation_config.json").unlink(missing_ok=True)
    for pattern in COMPANIONS:
        for path in sorted(Path(model_path).glob(pattern)):
            shutil.copyfile(path, Path(folder) / path.name)


def plain_recipe(folder):
    """Take the Python object tags out of recipe.yaml: only an unsafe loader, which runs code, would read them."""
    path = Path(folder) / "recipe.yaml"
    text = re.sub(r"!!python/object/apply:\S+ \[\s*([^\]]+?)\s*\]", r"\1", path.read_text())
    path.write_text(re.sub(r" ?!!python/tuple", "", text))
