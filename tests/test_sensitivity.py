"""Which layers suffer: what a part is, what is spared, what it costs, and how the report shows it."""

import copy
import json

import pytest
from quantbench import guess, sections_sensitivity, sensitivity
from quantbench.cluster import load_cluster, placement
from quantbench.errors import UserError
from quantbench.jobs import build_jobs, read_job
from quantbench.keys import key
from quantbench.manifest import build_manifest
from quantbench.model_fit import left_alone
from quantbench.plan import plan_text
from quantbench.schemes import load_schemes
from quantbench.sections import Context
from quantbench.store import Store
from quantbench.study import ROOT, load_study
from quantbench.workflow import Workflow

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
