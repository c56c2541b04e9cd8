"""Programs that tests of quantize_model run in the quantize environment, each with its arguments and JSON at its end."""

# Each check of the toolkit module on its own, against a model that gets worse.
CHECKS = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from quantbench.errors import UserError
from quantbench.quantize import toolkit

path, said = Path(sys.argv[1]), {}

def check(name, function, *arguments):
    try:
        said[name] = str(function(*arguments))
    except UserError as error:
        said[name] = f"UserError: {error}"

model = toolkit.load_model(path)
check("no target", toolkit.layers_to_quantize, model, ["re:.*no_such_layer"], [])
check("head", toolkit.layers_to_quantize, model, ["Linear"], [])
check("no ignore", toolkit.layers_to_quantize, model, ["Linear"], ["lm_head", "re:.*no_such_layer"])
check("nothing left", toolkit.layers_to_quantize, model, ["re:.*mlp"], ["re:.*_proj"])
check("head meant", toolkit.layers_to_quantize, model, ["lm_head"], [])
check("slip", toolkit.layers_to_quantize, model, ["Linear"], ["lm_haed"])
weights = load_file(path / "model.safetensors")
del weights["model.layers.1.mlp.up_proj.weight"]
save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
check("missing", toolkit.load_model, path)
weights["model.layers.1.mlp.up_proj.weight"] = torch.full((768, 256), float("nan"), dtype=torch.bfloat16)
save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
check("nan", toolkit.load_model, path)
print(json.dumps(said))
"""

# Every scheme in one process, since importing the toolkit takes longer than a scheme; each with its own error, if any.
EVERY = """
import json, sys
import quantize_model
jobs, store, output = json.loads(sys.stdin.read()), *sys.argv[1:]
said = {}
for name, job in jobs.items():
    try:
        quantize_model.main([f"--job={json.dumps(job)}", f"--store={store}", f"--output={output}/{name}.json"])
        said[name] = json.load(open(f"{output}/{name}.json"))
    except Exception as error:
        said[name] = {"error": repr(error)}
print(json.dumps(said))
"""

# Dequantizes a checkpoint of each layout with nothing of the project: numbers by shifting, one position at a time.
SAME_WEIGHTS = """
import json, sys
import torch
from safetensors.torch import load_file

def numbers(packed, order=range(8)):
    found = torch.stack([packed >> 4 * order.index(i) & 15 for i in range(8)], -1)
    return found.reshape(*packed.shape[:-1], -1)

def compressed(tensors, layer):
    weight, scale = numbers(tensors[layer + ".weight_packed"]), tensors[layer + ".weight_scale"].double()
    zero = tensors.get(layer + ".weight_zero_point")
    zero = torch.full(scale.shape, 8) if zero is None else numbers(zero.T.contiguous()).T
    return (weight - zero.repeat_interleave(128, 1)) * scale.repeat_interleave(128, 1)

def native(tensors, layer, awq):
    order = [0, 2, 4, 6, 1, 3, 5, 7] if awq else list(range(8))
    packed = tensors[layer + ".qweight"]
    weight = numbers(packed, order) if awq else numbers(packed.T.contiguous()).T
    zero = numbers(tensors[layer + ".qzeros"], order) + (0 if awq else 1)
    scale = tensors[layer + ".scales"].double()
    return ((weight - zero.repeat_interleave(128, 0)) * scale.repeat_interleave(128, 0)).T

one, other = (load_file(path + "/model.safetensors") for path in sys.argv[1:3])
layers = [name.removesuffix(".weight_packed") for name in one if name.endswith(".weight_packed")]
same = [torch.equal(compressed(one, layer), native(other, layer, sys.argv[3] == "awq")) for layer in layers]
plain = [torch.equal(one[name], other[name]) for name in one if name in other]
print(json.dumps([len(layers), all(same), len(plain), all(plain)]))
"""

# What a SQNR is, by other means: the whole model in float64, one layer's weight replaced by a checkpoint's, dequantized by
# the toolkit's own loader; with the smoothed neighbours of AWQ that is no longer one layer, so only GPTQ and rounding.
ONE_LAYER = """
import json, sys
import torch
from pathlib import Path
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from quantbench.quantize import layer_error, toolkit
path, made, layer = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
model, other = toolkit.load_model(path), AutoModelForCausalLM.from_pretrained(
    made, dtype="auto", quantization_config=CompressedTensorsConfig(run_compressed=False)
)
ids = torch.tensor([[5, 9, 2, 7, 7, 3, 250, 17]])
seen = []
module = model.get_submodule(layer)
hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
model(input_ids=ids)
hook.remove()
with torch.no_grad():
    y = seen[0] @ module.weight.double().T
    z = other.get_submodule(layer)(seen[0].to(torch.bfloat16)).double()
    db = 10 * torch.log10(y.square().sum() / (y - z).square().sum()).item()
recipe = json.loads((made / "quantbench.json").read_text())["identity"]["recipe"]
[row] = [row for row in layer_error.layer_errors(model, made, recipe, ids.tolist()) if row["layer"] == layer]
print(json.dumps([db, row["output_sqnr_db"], row["tokens"]]))
"""
