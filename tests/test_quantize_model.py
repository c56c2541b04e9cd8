"""quantize_model: what is checked before the toolkit is imported, and, with the toolkit, every scheme on a tiny model.

Tests marked `quantize` need an interpreter with llm-compressor: QUANTBENCH_QUANTIZE_PYTHON names it.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import quantize_model
import yaml
from forks import Forks
from quantbench import schemes
from quantbench.errors import UserError
from quantbench.keys import key
from quantbench.quantize import checkpoint
from quantbench.store import Store

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow" / "scripts"
SCHEMES = schemes.load_schemes(ROOT / "config" / "schemes")
TOOLKIT_SCHEMES = [name for name, scheme in SCHEMES.items() if scheme["toolkit"] != "none"]


def identity_of(scheme, versions, samples=8):
    rows = {"dataset": "d" * 64, "split": "train", "samples": samples, "max_tokens": 64, "seed": 0}
    return {
        "artefact": "checkpoint",
        "model": "a" * 64,
        "recipe": schemes.recipe_identity(scheme),
        "calibration": rows if scheme["calibrated"] else None,
        "versions": versions,
    }


def job_of(name, model, versions, scheme=None, **changes):
    identity = identity_of(scheme or SCHEMES[name], versions, **changes)
    return {
        "model": "tiny",
        "scheme": name,
        "identity": identity,
        "recipe": identity["recipe"],
        "model_path": str(model),
        "dataset_path": str(model / "train.jsonl"),
    }


# --- without the toolkit --------------------------------------------------------------------------------------------


def test_a_checkpoint_in_the_store_only_gets_its_pointer(tmp_path):
    job = job_of("gptq-int4", tmp_path / "no-model", {"llmcompressor": "0"})
    store = Store(tmp_path / "store")
    with store.new_folder("checkpoints", job["identity"], {"quantize_s": 2.5}):
        pass
    pointer = tmp_path / "pointer.json"
    quantize_model.main([f"--job={json.dumps(job)}", f"--store={store.root}", f"--output={pointer}"])
    record = json.loads(pointer.read_text())
    assert record["key"] == key(job["identity"]) and record["quantize_s"] == 2.5
    assert Path(record["path"]) == store.folder("checkpoints", record["key"])
    assert "torch" not in sys.modules


def test_other_versions_than_the_identity_says_are_refused():
    quantize_model.check_versions({})
    with pytest.raises(UserError, match="pytest 0.1, but this environment has"):
        quantize_model.check_versions({"pytest": "0.1"})
    with pytest.raises(UserError, match="not installed"):
        quantize_model.check_versions({"no-such-package": "1"})


def test_a_build_for_another_device_is_the_same_version(monkeypatch):
    monkeypatch.setattr(quantize_model.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    quantize_model.check_versions({"torch": "2.13.0"})
    with pytest.raises(UserError):
        quantize_model.check_versions({"torch": "2.13"})


@pytest.mark.parametrize(
    ("config", "files", "words"),
    [
        (None, [], "config.json is missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, ["a.safetensors"], r"quantized already \(gptq\)"),
        ({}, ["pytorch_model.bin"], "no safetensors file"),
    ],
)
def test_a_model_that_cannot_be_quantized_is_refused(tmp_path, config, files, words):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=words):
        quantize_model.check_model(tmp_path, schemes.recipe_identity(SCHEMES["gptq-int4"]))


def test_layers_are_counted():
    quantize_model.check_layers({"a", "b"}, {"a", "b"})
    with pytest.raises(RuntimeError, match="1 layers are quantized instead of 2; they differ in b"):
        quantize_model.check_layers({"a"}, {"a", "b"})


# --- with the toolkit -----------------------------------------------------------------------------------------------

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
check("head", toolkit.layers_to_quantize, model, ["Linear"], ["re:.*no_such_layer"])
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


@pytest.fixture(scope="module")
def environment():
    # The last three are read by imports; quantize_model sets them before its own.
    return os.environ | {
        "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


@pytest.fixture(scope="module")
def toolkit(quantize_python, environment):
    """Runs Python in the quantize environment, with the toolkit imported."""
    with Forks(quantize_python, ["quantbench.quantize.toolkit"], environment) as forks:
        yield forks.run


@pytest.fixture(scope="module")
def versions(toolkit):
    code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"
    return json.loads(toolkit("-c", code % (["llmcompressor", "compressed-tensors", "torch"],)).stdout)


@pytest.fixture(scope="module")
def model(toolkit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    made = toolkit(ROOT / "tests" / "random_llama.py", folder)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture
def quantize(toolkit, tmp_path):
    """quantize(job) -> (finished process, pointer or None)"""

    def run(job, store="store", python=toolkit):
        pointer = tmp_path / "pointer.json"
        pointer.unlink(missing_ok=True)
        arguments = [f"--job={json.dumps(job)}", f"--store={tmp_path / store}", f"--output={pointer}"]
        done = python(SCRIPTS / "quantize_model.py", *arguments)
        return done, json.loads(pointer.read_text()) if pointer.exists() else None

    return run


# 4 bits and a 16-bit scale per 128: 4.125; with 4-bit zero points 4.15625; nvfp4: 4 + 8/16 and one float32 a layer;
# int8: one 16-bit scale per row of 256 (8.0625) or of 768 (8.02); fp8: one 16-bit scale per 128 x 128.
BITS = {
    "rtn-int4": (4.125, 4.125),
    "gptq-int4": (4.125, 4.125),
    "awq-int4": (4.15625, 4.15625),
    "int8-smoothquant": (8.02, 8.07),
    "fp8-block": (8 + 16 / 128**2, 8 + 16 / 128**2),
    "nvfp4": (4.5, 4.501),
}


@pytest.mark.quantize
@pytest.mark.parametrize("name", TOOLKIT_SCHEMES)
def test_every_scheme_makes_a_checkpoint(name, model, versions, quantize):
    done, record = quantize(job_of(name, model, versions))
    assert done.returncode == 0, done.stderr
    folder = Path(record["path"])
    low, high = BITS[name]
    assert low <= record["bits_per_weight"] <= high
    # 2 layers of q, k, v, o, gate, up, down
    assert record["layers_quantized"] == 14
    # embeddings and head 2 * 2048 * 256, norms 5 * 256, and per layer 2 * 256 * 256 + 2 * 128 * 256 + 3 * 768 * 256
    assert record["parameters"] == 2 * 2048 * 256 + 5 * 256 + 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 768 * 256)
    assert record["bytes"] < 2 * record["parameters"]
    assert record["peak_memory_bytes"] > record["bytes"] and record["quantize_s"] > 0
    if record["sqnr_db"] is not None:
        # a 4-bit group of Gaussian weights keeps 19 to 21 dB, fp8 31 dB; GPTQ gives up some of it for the outputs' sake
        assert len(record["sqnr_db"]) == 14 and all(10 < ratio < 40 for ratio in record["sqnr_db"].values())
    # the toolkit inferred the layout that the kernel stage builds without a checkpoint
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["format"] == schemes.format_name(SCHEMES[name]["format"])
    assert "lm_head.weight" in checkpoint.tensors(folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert list(recipe["default_stage"]["default_modifiers"]) == schemes.modifier_names(SCHEMES[name])
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / file).read_bytes() == (model / file).read_bytes()
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == [record["key"]]


@pytest.mark.quantize
def test_the_same_identity_gives_the_same_bytes(model, versions, quantize, quantize_python, environment):
    # Runs of one Forks have the seed of Python's hashes in common; these have another.
    with Forks(quantize_python, ["quantbench.quantize.toolkit"], environment | {"PYTHONHASHSEED": "1"}) as others:
        for name in ("gptq-int4", "awq-int4"):
            digests = []
            for store, more in (("first", {}), ("second", {"python": others.run})):
                done, record = quantize(job_of(name, model, versions), store, **more)
                assert done.returncode == 0, done.stderr
                files = sorted(path for path in Path(record["path"]).iterdir() if path.name != "quantbench.json")
                digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
            assert digests[0] == digests[1] and "model.safetensors" in digests[0]


@pytest.mark.quantize
def test_what_a_user_can_mend_is_one_line_and_leaves_nothing(model, versions, quantize, tmp_path):
    done, record = quantize(job_of("gptq-int4", model, versions, samples=17))
    assert done.returncode == 2 and record is None
    assert "calibration.samples is 17" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "store").rglob("*"))


@pytest.mark.quantize
def test_what_the_toolkit_does_not_check(model, toolkit, tmp_path):
    done = toolkit("-c", CHECKS, shutil.copytree(model, tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["no target"].startswith("UserError: targets ['re:.*no_such_layer']")
    assert said["head"].startswith("UserError: lm_head would be quantized too")
    assert said["head meant"] == "{'lm_head': (2048, 256)}"
    assert "no linear layer of the model; did you mean 'lm_head'?" in said["slip"]
    assert "the weights lack model.layers.1.mlp.up_proj.weight" in said["missing"]
    assert "model.layers.1.mlp.up_proj.weight holds NaN" in said["nan"]
