"""Which layers suffer: what a part is, what is spared, what it costs, and, with the toolkit, the numbers themselves."""

import copy
import json
import os
from pathlib import Path

import pytest
from forks import Forks
from quantbench import guess, sections_sensitivity, sensitivity
from quantbench.cluster import load_cluster, placement
from quantbench.errors import UserError
from quantbench.jobs import build_jobs, quantize_jobs, read_job
from quantbench.keys import key
from quantbench.manifest import build_manifest
from quantbench.model_fit import left_alone
from quantbench.plan import plan_text
from quantbench.quantize import checkpoint
from quantbench.schemes import load_schemes
from quantbench.sections import Context
from quantbench.store import Store
from quantbench.study import ROOT, load_study
from quantbench.workflow import Workflow

SCRIPTS = ROOT / "workflow" / "scripts"
TINY = ROOT / "resources" / "tiny"
SCHEMES = load_schemes(ROOT / "config" / "schemes")
MODEL = json.loads((TINY / "model" / "config.json").read_text())
# Parts of one block of the tiny model: 256 wide, 4 heads of 64 with 2 of keys, an MLP of 768.
QKV, OUT, GATE_UP, DOWN = 256 * (256 + 2 * 128), 256 * 256, 2 * 768 * 256, 256 * 768
SCAN = {"dataset": "arithmetic", "documents": 4, "max_tokens": 32}
SCANNED = ("rtn-int4", "int8-smoothquant", "awq-int4", "nvfp4")
CONFIG = {
    "study": "scan",
    "title": "Which layers?",
    "models": [{"name": "tiny", "source": "tiny"}],
    "schemes": ["bf16", *SCANNED, "rtn-int4-spared"],
    "gpus": ["cpu"],
    "datasets": [{"name": "arithmetic", "source": "tiny"}],
    "calibration": {"dataset": "arithmetic", "samples": 8, "max_tokens": 64},
    "sensitivity": [{"scheme": scheme, **SCAN} for scheme in SCANNED],
}


@pytest.fixture
def config(tmp_path):
    return copy.deepcopy(CONFIG) | {"store": str(tmp_path / "store")}


def manifest_of(config):
    return build_manifest(load_study(copy.deepcopy(config)))


def checkpoints(manifest):
    return {entry["scheme"]: entry["key"] for entry in manifest["checkpoints"]}


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_part_is_what_the_engine_fuses():
    found = sensitivity.parts(SCHEMES["rtn-int4"], MODEL, "linear")
    assert len(found) == 4 * 4 + 1
    qkv = found["model.layers.1.self_attn.qkv_proj"]
    assert qkv["layers"] == [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
    assert qkv["modules"] == qkv["layers"]
    sizes = [found[f"model.layers.1.{name}"]["parameters"] for name in
             ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")]  # fmt: skip
    assert sizes == [QKV, OUT, GATE_UP, DOWN]
    assert found["all"]["parameters"] == 4 * sum(sizes)


def test_a_part_takes_along_what_its_recipe_rescales():
    smoothed = sensitivity.parts(SCHEMES["int8-smoothquant"], MODEL, "linear")
    assert "model.layers.0.input_layernorm" in smoothed["model.layers.0.self_attn.qkv_proj"]["modules"]
    assert "model.layers.0.post_attention_layernorm" in smoothed["model.layers.0.mlp.gate_up_proj"]["modules"]
    assert smoothed["model.layers.0.mlp.down_proj"]["modules"] == ["model.layers.0.mlp.down_proj"]
    # AWQ also divides up_proj by what it multiplies down_proj with.
    scaled = sensitivity.parts(SCHEMES["awq-int4"], MODEL, "linear")
    assert list(scaled) == [f"model.layers.{i}.{name}" for i in range(4) for name in ("self_attn", "mlp")] + ["all"]
    assert "model.layers.0.post_attention_layernorm" in scaled["model.layers.0.mlp"]["modules"]
    assert scaled["model.layers.0.mlp"]["parameters"] == GATE_UP + DOWN
    blocks = sensitivity.parts(SCHEMES["awq-int4"], MODEL, "block")
    assert blocks["model.layers.3"]["modules"][0] == "model.layers.3" and len(blocks) == 5


def test_what_a_scheme_ignores_is_no_part():
    scheme = SCHEMES["rtn-int4"] | {"ignore": ["re:model\\.layers\\.0\\."]}
    found = sensitivity.parts(scheme, MODEL, "linear")
    assert "lm_head" in found and not any(name.startswith("model.layers.0.") for name in found)
    assert sensitivity.place_of("lm_head") == (None, "lm_head")
    assert sensitivity.place_of("model.layers.12.mlp.down_proj") == (12, "down_proj")
    assert sensitivity.place_of("model.layers.12") == (12, "block")


# --- what is spared -----------------------------------------------------------------------------------------------------


def test_the_most_divergence_per_weight_is_spared_first():
    found = {"a": {"parameters": 10}, "b": {"parameters": 40}, "c": {"parameters": 20}, "d": {"parameters": 30}}
    # Per weight: a 0.3, b 0.2, c 0.1, d 0.05. Of 100 weights half may stay: a and b take 50.
    divergences = {"a": 3, "b": 8, "c": 2, "d": 1.5}
    assert sensitivity.chosen(found, divergences, 0.5) == ["a", "b"]
    # Of 35, a takes 10; b does not fit any more, c does.
    assert sensitivity.chosen(found, divergences, 0.35) == ["a", "c"]
    assert sensitivity.chosen(found, divergences, 0.05) == []


def test_layers_are_named_by_the_points(tmp_path):
    store, parts_ = Store(tmp_path), {}
    for name, nats in (("a", 0.3), ("b", 0.1)):
        identity = {"part": name}
        rows = [{"kl_divergence": nats * tokens, "tokens": tokens} for tokens in (10, 30)]
        parts_[name] = {"layers": [f"{name}.1", f"{name}.2"], "parameters": 5, "point": key(identity)}
        if name == "a":
            store.write_point(identity, status="ok", rows=rows, run_id="r")
    assert sensitivity.divergence(rows) == pytest.approx(0.1)
    spare = {"share": 0.5, "parts": parts_}
    with pytest.raises(UserError, match="no sensitivity of b: it has not been measured"):
        sensitivity.spared_layers(spare, store)
    store.write_point(identity, status="ok", rows=rows, run_id="r")
    assert sensitivity.spared_layers(spare, store) == ["a.1", "a.2"]
    job = {"identity": {"recipe": {"ignore": ["lm_head"]}}, "spare": spare}
    assert sensitivity.recipe_of(job, store)["ignore"] == ["lm_head", "a.1", "a.2"]
    assert sensitivity.recipe_of({"identity": job["identity"]}, store)["ignore"] == ["lm_head"]


def test_no_more_layers_may_run_unquantized_than_a_share_holds():
    # A tenth of 4 * (QKV + OUT + GATE_UP + DOWN) = 314572 weights: 2 of 131072, 4 of 65536, none of 393216, 1 of 196608.
    assert left_alone(SCHEMES["rtn-int4-spared"], MODEL) == {
        "lm_head": 1, "qkv_proj": 2, "o_proj": 4, "down_proj": 1,
    }  # fmt: skip
    assert left_alone(SCHEMES["rtn-int4"], MODEL) == {"lm_head": 1}


# --- keys, jobs and their order -------------------------------------------------------------------------------------------


def test_a_scan_changes_no_other_key_and_what_it_reads_only_its_own(config):
    plain = manifest_of(
        config | {"sensitivity": [], "schemes": config["schemes"][:-1]} | {"sensitivity": CONFIG["sensitivity"][:1]}
    )
    found = manifest_of(config)
    assert {k: v for k, v in checkpoints(found).items() if k != "rtn-int4-spared"} == checkpoints(plain)
    assert {p["key"] for p in plain["points"]} < {p["key"] for p in found["points"]}
    config["sensitivity"][0]["documents"] = 5
    more = manifest_of(config)
    changed = {scheme for scheme, key_ in checkpoints(more).items() if key_ != checkpoints(found)[scheme]}
    assert changed == {"rtn-int4-spared"}
    stages = {p["stage"] for p in more["points"] if p["scheme"] == "rtn-int4"} - {"support", "load"}
    assert stages == {"sensitivity"}
    # The same part of the same scheme, asked for by layers and by blocks, is one point.
    config["sensitivity"].append(config["sensitivity"][0] | {"per": "block"})
    both = [p for p in manifest_of(config)["points"] if p["stage"] == "sensitivity" and p["scheme"] == "rtn-int4"]
    assert len(both) == 17 + 5 and len({p["key"] for p in both}) == 17 + 4


def test_a_job_is_found_by_its_name_and_runs_where_quantizing_does(config, tmp_path):
    found = manifest_of(config)
    (tmp_path / "manifest.json").write_text(json.dumps(found))
    store = Store(config["store"])
    job = read_job(f"{tmp_path / 'manifest.json'}:measure_sensitivity/tiny/rtn-int4", store)
    assert job == build_jobs(found, store)["measure_sensitivity"][None, "tiny", "rtn-int4"]
    assert len(job["parts"]) == 17 and job["gpu"] is None and job["gpu_entry"] is None
    cluster = load_cluster(tmp_path / "none.yaml")
    cluster["quantize"] |= {"partition": "big"}
    assert placement(cluster, "measure_sensitivity") == placement(cluster, "quantize_model")
    text = plan_text(found, store)
    assert "tiny/rtn-int4            sensitivity   17 missing: new" in text
    assert "device time on the quantizing node: about" in text


def test_a_part_is_expected_to_take_a_pass_of_the_16_bit_model():
    device, size = guess.Device("engine-cuda", 1e12, 1e14), guess.Size(8e9, 5e9, 1e5)
    identity = {"stage": "sensitivity", "params": {"documents": 4, "max_tokens": 64}}
    # Every document reads 16e9 bytes of weights at half of 1e12 B/s; 64 tokens compute less long than that.
    assert guess.point_s(identity, device, size) == pytest.approx(4 * (0.005 + 16e9 / 0.5e12))
    # The model and a copy of it, and 4 bytes for each of 4 x 64 tokens and 128000 words.
    wanted = guess.QUANTIZE_HOST_BYTES + 4 * 8e9 + 4 * 128000 * 4 * 64
    assert guess.sensitivity_memory_bytes(size, [{"identity": identity}], 128000) == wanted


def test_checkpoint_scan_spared_checkpoint(config):
    workflow = Workflow(config)

    def needs(name, **wildcards):
        return [
            path for path in workflow.needs(name, model="tiny", **wildcards) if "checkpoints" in path or "sensi" in path
        ]

    scan = "results/scan/sensitivity/tiny/rtn-int4.json"
    assert needs("quantize_model", scheme="rtn-int4-spared") == [scan]
    assert needs("measure_sensitivity", scheme="rtn-int4") == ["results/scan/checkpoints/tiny/rtn-int4.json"]
    assert needs("quantize_model", scheme="rtn-int4") == []
    assert scan in workflow.pointers()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["sensitivity"][0].update(scheme="rtn-int5"), "'rtn-int5' is not among the study's schemes"),
        (lambda c: c["sensitivity"][0].update(scheme="bf16"), "'bf16' has no checkpoint that is made here"),
        (lambda c: c["sensitivity"][0].update(dataset="arithmetics"), "unknown data set 'arithmetics'"),
        (lambda c: c["sensitivity"][0].update(per="layer"), "'layer' is not one of the values"),
        (lambda c: c["sensitivity"][0].update(documents=10**6), r"sensitivity\[0\].documents: 1000000 asked"),
        (lambda c: c["sensitivity"][0].update(max_tokens=10**6), "more than the context of model 'tiny'"),
        (lambda c: c["sensitivity"].append(c["sensitivity"][0] | {"documents": 9}), "rtn-int4 linear arithmetic stands twice"),
        (lambda c: c["sensitivity"].pop(0), "rtn-int4-spared spares the worst layers of rtn-int4, so sensitivity"),
        (
            lambda c: (c["schemes"].append("gptq-int4-native"), c["sensitivity"][1].update(scheme="gptq-int4-native")),
            "is in layout gptq; name the scheme of the same numbers",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_scanned_is_refused_before_anything_runs(config, change, words):
    change(config)
    with pytest.raises(UserError, match=words):
        load_study(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spare": {"worst_of": "bf16", "share": 0.1}}, "spare.worst_of is 'bf16'; valid are schemes with toolkit"),
        ({"spare": {"worst_of": "rtn-int", "share": 0.1}}, "did you mean 'rtn-int4'"),
        ({"ignore": []}, "ignore has to be that of rtn-int4"),
        ({"spare": {"worst_of": "rtn-int4", "share": 1}}, "spare.share"),
    ],
)
def test_a_scheme_that_spares_nothing_sensible_is_refused(tmp_path, change, words):
    import yaml

    for name in ("bf16", "rtn-int4"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(SCHEMES[name]))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SCHEMES["rtn-int4-spared"] | change))
    with pytest.raises(UserError, match=words):
        load_schemes(tmp_path)


def test_a_share_below_the_smallest_part_is_refused(config, monkeypatch):
    spared = SCHEMES["rtn-int4-spared"] | {"spare": {"worst_of": "rtn-int4", "share": 0.01}}
    monkeypatch.setattr("quantbench.study.load_schemes", lambda folder: SCHEMES | {"rtn-int4-spared": spared})
    # o_proj: 65536 / 3145728 = 0.021
    with pytest.raises(UserError, match=r"may spare 0.01 of the weights, but the smallest part .* has 0.021 of them"):
        load_study(config)


# --- the report -----------------------------------------------------------------------------------------------------------


def test_the_report_names_what_suffers_most(study):
    section = sections_sensitivity.sensitivity(Context(*study))
    (group,) = section["groups"]
    # 0.001 * (2 + 1) * 10, and a tenth more for every third document, two tenths for another
    assert group["heading"].startswith("down_proj of block 2 suffers most: 0.033 nats per token")
    assert "cannot tell" not in group["heading"]
    assert [row[0] for row in group["numbers"]["rows"]][:3] == [
        "all parts together", "down_proj of block 2", "qkv_proj of block 3",
    ]  # fmt: skip
    assert group["numbers"]["rows"][1][1] == "6.2 %"
    assert {entry["scheme"] for entry in section["legend"]} == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert len(group["panels"]) == 2 and "down_proj at block 2: 0.03" in group["panels"][0]["description"]


def test_the_report_shows_a_spared_scheme_beside_its_parent(study):
    import polars as pl

    manifest, tables = copy.deepcopy(study[0]), dict(study[1])
    manifest["schemes"]["int8-smoothquant"]["spare"] = {"worst_of": "rtn-int4", "share": 0.1}
    layers = pl.when(pl.col("scheme") == "int8-smoothquant").then(pl.lit("model.layers.2.mlp.down_proj, lm_head"))
    tables["checkpoints"] = tables["checkpoints"].with_columns(layers.alias("spared"))
    (group,) = sections_sensitivity.sensitivity(Context(manifest, tables))["groups"]
    note = "int8-smoothquant leaves down_proj of block 2 and lm_head in 16 bits, at most 10 % of rtn-int4’s weights"
    assert any(text.startswith(note) for text in group["notes"])
    (table,) = group["more"]
    assert [row[:2] for row in table["rows"]] == [
        [gpu, scheme] for gpu in ("cpu", "h200") for scheme in ("rtn-int4", "int8-smoothquant")
    ]


# --- with the toolkit -----------------------------------------------------------------------------------------------------

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
    manifest = manifest_of(CONFIG | {"store": str(folder / "store")})
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
    assert Path(store.folder("checkpoints", entry["key"]) / "quantbench.json").exists()
