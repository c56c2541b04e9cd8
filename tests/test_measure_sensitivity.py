"""measure_sensitivity with the real toolkit on the tiny model: four schemes quantized, scanned, and held against another way.

Tests marked `quantize` need an interpreter with llm-compressor: QUANTBENCH_QUANTIZE_PYTHON names it.
"""

import json
import os

import pytest
from forks import Forks
from quantbench import sensitivity
from quantbench.jobs import build_jobs, quantize_jobs
from quantbench.manifest import build_manifest
from quantbench.quantize import checkpoint
from quantbench.store import Store
from quantbench.study import ROOT, load_study
from test_sensitivity import CONFIG, SCAN, SCANNED, TINY

SCRIPTS = ROOT / "workflow" / "scripts"

# Quantizes and scans in one process, since importing the toolkit takes longer than either.
CHAIN = """
import json, sys
import measure_sensitivity, quantize_model
manifest, store, folder = sys.argv[1:]
for job in json.loads(sys.stdin.read()):
    script = measure_sensitivity if job.startswith("measure_sensitivity") else quantize_model
    script.main([f"--job={manifest}:{job}", f"--store={store}", f"--output={folder}/{job.replace('/', '-')}.json"])
"""

# The whole scheme by another way: transformers loads the checkpoint itself, and rounds as compressed-tensors tells it to.
OTHERWISE = """
import json, sys
from pathlib import Path
import torch
from quantbench.keys import canonical_json
from quantbench.quantize import sensitivity, toolkit
from quantbench.sensitivity import ALL, documents
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

given, said = json.loads(sys.stdin.read()), {}
tokenizer = toolkit.load_tokenizer(given["model"])
texts = [tokenizer(text)["input_ids"][: given["max_tokens"]] for text in documents(given["texts"], given["documents"])]
model = sensitivity.exact_head(toolkit.load_model(given["model"]))
before = {name: parameter.clone() for name, parameter in model.named_parameters()}
scan = sensitivity.Scan(model, texts)
nothing = {"layers": [], "modules": []}
for scheme, (path, parts) in given["checkpoints"].items():
    own = AutoModelForCausalLM.from_pretrained(
        path, dtype="auto", quantization_config=CompressedTensorsConfig(dequantize=True)).eval()
    with torch.no_grad():
        last = [own.model(input_ids=torch.tensor([ids])).last_hidden_state[0, :-1] for ids in texts]
        found = [(hidden.float() @ own.lm_head.weight.float().T).log_softmax(-1) for hidden in last]
    compared = [sensitivity.compared(e, f, torch.tensor(ids)[1:]) for e, f, ids in zip(scan.expected, found, texts)]
    checkpoint = sensitivity.Checkpoint(path)
    sensitivity.check_rest(model, checkpoint, parts)
    said[scheme] = {"otherwise": compared, "nothing": scan.rows(checkpoint, nothing)}
    # A part that leaves behind what its recipe rescales is another function.
    said[scheme]["torn"] = {
        name: scan.rows(checkpoint, part | {"modules": part["layers"]}) for name, part in parts.items()
        if name in ("model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp")
    }
said["restored"] = all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
broken = sensitivity.Checkpoint(given["checkpoints"]["int8-smoothquant"][0])
try:
    sensitivity.check_rest(model, broken, {"o": {"modules": ["model.layers.0.self_attn.o_proj"]}})
except Exception as error:
    said["refused"] = repr(error)
print(canonical_json(said))
"""


@pytest.fixture(scope="module")
def toolkit(quantize_python):
    environment = os.environ | {
        "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    with Forks(quantize_python, ["quantbench.quantize.toolkit"], environment) as forks:
        yield forks.run


@pytest.fixture(scope="module")
def scanned(toolkit, tmp_path_factory):
    """(manifest, store) of CONFIG with every checkpoint and every part's point."""
    folder = tmp_path_factory.mktemp("scan")
    manifest = build_manifest(load_study(CONFIG | {"store": str(folder / "store")}))
    store = Store(folder / "store")
    data = next(p["identity"]["params"]["dataset"] for p in manifest["points"] if p["stage"] == "sensitivity")
    for kind, name, source in (("models", manifest["models"]["tiny"]["key"], "model"), ("datasets", data, "data")):
        store.folder(kind, name).parent.mkdir(parents=True)
        store.folder(kind, name).symlink_to(TINY / source)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    jobs = [f"{rule}/tiny/{scheme}" for rule in ("quantize_model", "measure_sensitivity") for scheme in SCANNED]
    jobs.append("quantize_model/tiny/rtn-int4-spared")
    done = toolkit("-c", CHAIN, folder / "manifest.json", store.root, folder, input=json.dumps(jobs), timeout_s=1800)
    assert done.returncode == 0, done.stderr
    return manifest, store


@pytest.fixture(scope="module")
def nats(scanned):
    """{scheme: {part: nats per token}}"""
    manifest, store = scanned
    found = {}
    for point in manifest["points"]:
        if point["stage"] == "sensitivity":
            rows = store.read_point(point["key"])["rows"]
            found.setdefault(point["scheme"], {})[point["part"]["name"]] = sensitivity.divergence(rows)
    return found


@pytest.mark.quantize
def test_every_part_has_its_rows(scanned):
    manifest, store = scanned
    for point in manifest["points"]:
        if point["stage"] != "sensitivity":
            continue
        record = store.read_point(point["key"])
        assert record["status"] == "ok" and [row["document"] for row in record["rows"]] == [0, 1, 2, 3]
        # cut to 32, the first of which nothing predicts
        assert all(0 <= row["top1_agreement"] <= row["tokens"] <= 31 for row in record["rows"])
        assert max(row["tokens"] for row in record["rows"]) == 31


@pytest.mark.quantize
def test_parts_alone_add_up_to_about_the_whole(nats):
    for scheme, found in nats.items():
        alone = [value for name, value in found.items() if name != "all"]
        assert 0.3 * sum(alone) < found["all"] < 3 * sum(alone), scheme
        assert min(alone) > 0
    # The tiny model's outliers are read by qkv_proj and gate_up_proj; 8 bits with SmoothQuant keep more than 4 without.
    worst = max((name for name in nats["rtn-int4"] if name != "all"), key=nats["rtn-int4"].get)
    assert sensitivity.place_of(worst)[1] == "qkv_proj"
    assert nats["int8-smoothquant"]["all"] < nats["awq-int4"]["all"] < nats["rtn-int4"]["all"] < nats["nvfp4"]["all"]


@pytest.mark.quantize
def test_the_whole_is_what_transformers_makes_of_the_checkpoint(scanned, nats, toolkit):
    manifest, store = scanned
    paths = {entry["scheme"]: str(store.folder("checkpoints", entry["key"])) for entry in manifest["checkpoints"]}
    jobs = build_jobs(manifest, store)["measure_sensitivity"]
    given = {scheme: [paths[scheme], jobs[None, "tiny", scheme]["parts"]] for scheme in SCANNED}
    given = {"checkpoints": given, "model": str(TINY / "model"), "texts": str(TINY / "data" / "test.jsonl")}
    done = toolkit("-c", OTHERWISE, input=json.dumps(given | {k: SCAN[k] for k in ("documents", "max_tokens")}))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for scheme in SCANNED:
        assert sensitivity.divergence(said[scheme]["otherwise"]) == pytest.approx(nats[scheme]["all"], rel=0.1), scheme
        assert sensitivity.divergence(said[scheme]["nothing"]) == 0
    # Without its norm a part that was smoothed is a thousand times as far from the model as with it.
    for scheme, part in (("int8-smoothquant", "model.layers.0.self_attn.qkv_proj"), ("awq-int4", "model.layers.0.mlp")):
        assert sensitivity.divergence(said[scheme]["torn"][part]) > 100 * nats[scheme][part]
    assert said["restored"]
    assert "has changed" in said["refused"] and "besides the layers that it quantizes" in said["refused"]


@pytest.mark.quantize
def test_the_worst_layers_are_spared(scanned, nats):
    manifest, store = scanned
    entry = next(entry for entry in manifest["checkpoints"] if entry["scheme"] == "rtn-int4-spared")
    record = store.read_folder("checkpoints", entry["key"])
    parts_ = entry["spare"]["parts"]
    taken = sensitivity.chosen(parts_, nats["rtn-int4"], 0.1)
    assert record["spared"] == [layer for name in taken for layer in parts_[name]["layers"]] and taken
    found = checkpoint.tensors(store.folder("checkpoints", entry["key"]))
    assert checkpoint.quantized_layers(found).isdisjoint(record["spared"])
    assert len(checkpoint.quantized_layers(found)) == 4 * 7 - len(record["spared"])
    # What a quantizing job is told is what the manifest says.
    assert quantize_jobs(manifest, store)["tiny", "rtn-int4-spared"]["spare"] == entry["spare"]
