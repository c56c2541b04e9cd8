"""quantize_model: what is checked before the toolkit is imported, and, with the toolkit, every scheme on a tiny model.

Tests marked `quantize` need an interpreter with llm-compressor: QUANTBENCH_QUANTIZE_PYTHON names it.
"""

import hashlib
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

import pytest
import quantize_model
import yaml
from forks import Forks
from quantbench import layers, schemes
from quantbench.errors import UserError
from quantbench.keys import key
from quantbench.prequantized import check_claims
from quantbench.quantize import checkpoint
from quantbench.store import Store
from quantize_programs import CHECKS, EVERY, ONE_LAYER, SAME_WEIGHTS

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflow" / "scripts"
SCHEMES = schemes.load_schemes(ROOT / "config" / "schemes")
TOOLKIT_SCHEMES = [name for name, scheme in SCHEMES.items() if scheme["toolkit"] == "llmcompressor"]


TEXTS = {"dataset": "d" * 64, "split": "train", "samples": 8, "max_tokens": 64, "seed": 0}


def identity_of(scheme, versions, samples=8):
    rows = {**TEXTS, "samples": samples}
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
        "dataset_paths": [str(model / "train.jsonl")],
        "layers": [],
    }


def layer_point(identity, texts):
    """The point of a checkpoint's layers, as the manifest has it."""
    [point] = layers.layer_points({"calibration": texts}, layer_entry(identity), {texts["dataset"]: texts["dataset"]})
    return point


def layer_entry(identity):
    return {"quantized": True, "key": key(identity), "model": "tiny", "scheme": "any"}


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


@pytest.fixture(scope="module")
def made(model, versions, toolkit, tmp_path_factory):
    """{scheme: its pointer} of every scheme that the toolkit makes."""
    folder = tmp_path_factory.mktemp("made")
    jobs = {name: job_of(name, model, versions) for name in TOOLKIT_SCHEMES}
    for job in jobs.values():
        identity = layer_point(job["identity"], TEXTS)["identity"]
        job["layers"] = [{"identity": identity, "dataset_paths": job["dataset_paths"]}]
    done = toolkit("-c", EVERY, folder / "store", folder, input=json.dumps(jobs), timeout_s=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def bits(scheme):
    """(least, most) stored bits per weight of the random model, by arithmetic: numbers, scales and zero points.

    4 bits and a 16-bit scale per 128: 4.125; with 4-bit zero points 4.15625; nvfp4: 4 + 8/16 and a float32 a layer; mxfp4:
    4 + 8/32; a 16-bit scale per row of 256 (8.0625) or of 768 (8.02); fp8 blocks: one per 128 x 128; a whole tensor: 8.
    """
    weights = scheme["format"]["weights"]
    own = weights["num_bits"]
    if weights["strategy"] == "channel":
        return own + 16 / 768, own + 16 / 256
    if weights["strategy"] == "tensor":
        return own, own + 16 / (128 * 256)
    if weights["strategy"] == "block":
        return own + 16 / 128**2, own + 16 / 128**2
    scale = {"torch.float8_e4m3fn": 8, "torch.uint8": 8}.get(weights.get("scale_dtype"), 16)
    # Native layouts store zero points of symmetric numbers, too.
    zeros = 0 if weights["symmetric"] and "layout" not in scheme else own
    found = own + (scale + zeros) / weights["group_size"]
    # a float32 for each whole tensor, the smallest of which is 128 x 256
    return found, found + (32 / (128 * 256) if weights["strategy"] == "tensor_group" else 0)


# Signal over noise of Gaussian weights, in dB: 4-bit numbers in groups, fp8, and int8 by row or in groups of 128.
WEIGHTS_DB = {"int4": (17, 23), "fp4": (17, 23), "mxfp4": (17, 23), "fp8": (30, 33), "int8": (39, 46)}


def layer_rows(record):
    """What was kept of the layers of a checkpoint."""
    store = Store(Path(record["path"]).parents[1])
    point = store.read_point(layer_point(record["identity"], TEXTS)["key"])
    assert point["status"] == "ok", point["reason"]
    return point["rows"]


@pytest.mark.quantize
@pytest.mark.parametrize("name", TOOLKIT_SCHEMES)
def test_every_scheme_makes_a_checkpoint(name, made, model):
    record, scheme = made[name], SCHEMES[name]
    assert "error" not in record
    folder = Path(record["path"])
    low, high = bits(scheme)
    assert low <= record["bits_per_weight"] <= high
    # 2 layers of q, k, v, o, gate, up, down
    assert record["layers_quantized"] == 14
    # embeddings and head 2 * 2048 * 256, norms 5 * 256, and per layer 2 * 256 * 256 + 2 * 128 * 256 + 3 * 768 * 256
    assert record["parameters"] == 2 * 2048 * 256 + 5 * 256 + 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 768 * 256)
    assert record["bytes"] < 2 * record["parameters"]
    assert record["peak_memory_bytes"] > record["bytes"] and record["quantize_s"] > 0
    rows = layer_rows(record)
    assert len(rows) == 14 and rows[0]["layer"] == "model.layers.0.self_attn.q_proj"
    low, high = WEIGHTS_DB[schemes.number_type(scheme["format"]["weights"])]
    # GPTQ gives up some of the weights' for the outputs' sake; SmoothQuant makes columns of large inputs larger, whose
    # rounding errors count in rows of their size.
    low -= 8 if "GPTQModifier" in schemes.modifier_names(scheme) else 0
    low -= 8 if "SmoothQuantModifier" in schemes.modifier_names(scheme) else 0
    assert all(low < row["weight_sqnr_db"] < high for row in rows)
    assert all(5 < row["output_sqnr_db"] < 60 and row["tokens"] > 0 for row in rows)
    assert ("calibration_rows" in record) and bool(record["calibration_rows"]) == scheme["calibrated"]
    config, tensors = json.loads((folder / "config.json").read_text()), checkpoint.tensors(folder)
    # What is held against checkpoints of others is true of our own.
    check_claims(scheme, config, tensors, json.loads((model / "config.json").read_text()))
    described = config["quantization_config"]
    if "layout" not in scheme:
        # the toolkit inferred the layout that the kernel stage builds without a checkpoint
        assert described["format"] == schemes.format_name(scheme["format"])
    if "kv_cache" in scheme:
        assert described["kv_cache_scheme"]["num_bits"] == 8
        assert {"model.layers.1.self_attn.k_scale", "model.layers.1.self_attn.v_scale"} <= set(tensors)
    assert "lm_head.weight" in tensors
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert list(recipe["default_stage"]["default_modifiers"]) == schemes.modifier_names(scheme)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / file).read_bytes() == (model / file).read_bytes()
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def middle(record, name):
    return statistics.median(row[name] for row in layer_rows(record))


@pytest.mark.quantize
def test_errors_of_the_layers_have_the_order_that_the_papers_give(made):
    rtn, gptq, awq = (made[name] for name in ("rtn-int4", "gptq-int4", "awq-int4-symmetric"))
    outputs, weights = ([middle(r, name) for r in (rtn, awq, gptq)] for name in ("output_sqnr_db", "weight_sqnr_db"))
    # By what comes out of a layer, rounding to the nearest is the worst; by the weights themselves it is the best.
    assert outputs == sorted(outputs) and outputs[1] > outputs[0] + 1 and outputs[2] > outputs[0] + 3
    assert weights[0] >= weights[1] > weights[2]
    # With 8-bit inputs, what SmoothQuant takes from the large channels is the inputs' error.
    assert middle(made["int8-smoothquant"], "output_sqnr_db") > middle(made["int8-gptq"], "output_sqnr_db") + 3
    # The same integers in another layout are the same layer; only its scales are moved.
    for layout in ("gptq", "awq"):
        one, other = (layer_rows(made[f"{layout}-int4{native}"]) for native in ("", "-native"))
        pairs = [(a[n], b[n]) for a, b in zip(one, other, strict=True) for n in ("weight_sqnr_db", "output_sqnr_db")]
        assert all(a == pytest.approx(b, abs=0.05) for a, b in pairs)


@pytest.mark.quantize
@pytest.mark.parametrize("name", ["rtn-int4", "int8-rtn", "fp8-static"])
def test_a_layers_error_is_what_the_toolkits_own_layer_makes(name, made, model, toolkit):
    done = toolkit("-c", ONE_LAYER, model, made[name]["path"], "model.layers.1.mlp.up_proj")
    assert done.returncode == 0, done.stderr
    theirs, ours, tokens = json.loads(done.stdout.splitlines()[-1])
    assert tokens == 8 and ours == pytest.approx(theirs, abs=0.5)


@pytest.mark.quantize
@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_native_layouts_hold_the_same_weights(layout, made, toolkit):
    paths = [made[name]["path"] for name in (f"{layout}-int4", f"{layout}-int4-native")]
    done = toolkit("-c", SAME_WEIGHTS, *paths, layout)
    # embedding, head, and the norms: 2 a layer and the last
    assert done.returncode == 0 and json.loads(done.stdout) == [14, True, 7, True], done.stderr


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
    assert "calibration.samples wants 17 rows" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "store").rglob("*"))


@pytest.mark.quantize
def test_what_the_toolkit_does_not_check(model, toolkit, tmp_path):
    done = toolkit("-c", CHECKS, shutil.copytree(model, tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["no target"].startswith("UserError: targets: 're:.*no_such_layer' is no linear layer of the model")
    assert said["no ignore"].startswith("UserError: ignore: 're:.*no_such_layer' is no linear layer of the model")
    assert said["nothing left"].startswith(
        "UserError: targets ['re:.*mlp'] without ignore ['re:.*_proj'] leave no layer"
    )
    assert said["head"].startswith("UserError: lm_head would be quantized too")
    assert said["head meant"] == "{'lm_head': (2048, 256)}"
    assert "no linear layer of the model; did you mean 'lm_head'?" in said["slip"]
    assert "the weights lack model.layers.1.mlp.up_proj.weight" in said["missing"]
    assert "model.layers.1.mlp.up_proj.weight holds NaN" in said["nan"]


@pytest.mark.quantize
def test_a_stored_checkpoint_is_only_compared(model, versions, quantize, tmp_path):
    job = job_of("rtn-int4", model, versions)
    _, made = quantize(job)
    before = {path.name: path.stat().st_mtime_ns for path in Path(made["path"]).iterdir()}
    # One point on texts, as a study with a calibration has it, and one without, of a study that has none.
    points = [layer_point(job["identity"], TEXTS), layers.layer_points({}, layer_entry(job["identity"]), {})[0]]
    job["layers"] = [{"identity": p["identity"], "dataset_paths": job["dataset_paths"]} for p in points]
    done, again = quantize(job)
    assert done.returncode == 0 and again == made, done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in Path(made["path"]).iterdir()} == before
    store = Store(tmp_path / "store")
    on_texts, alone = (store.read_point(point["key"])["rows"] for point in points)
    assert [row["weight_sqnr_db"] for row in alone] == pytest.approx([row["weight_sqnr_db"] for row in on_texts])
    assert all(row["output_sqnr_db"] is None and row["tokens"] is None for row in alone)
    assert [run["points_measured"] for run in store.read_runs().values()] == [0, 2]
