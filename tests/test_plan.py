"""The plan: what is missing, why, and the time it would take, from a store that a test fills itself."""

import copy

import pytest
from quantbench.manifest import build_manifest
from quantbench.plan import estimate, plan_text, why_missing
from quantbench.study import load_study
from workflow_study import CONFIG

MODEL = {"artefact": "model", "files": {"model.safetensors": "00"}}


def checkpoint(group_size=128, model="m"):
    recipe = {"format": {"weights": {"group_size": group_size}}, "modifiers": [{"QuantizationModifier": {}}]}
    return {"artefact": "checkpoint", "model": model, "recipe": recipe}


def point(**changes):
    identity = {
        "stage": "latency",
        "gpu": "h200",
        "epoch": 0,
        "protocol": 1,
        "versions": {"vllm": "0.9", "torch": "2.7"},
        "checkpoint": checkpoint(),
        "params": {"batch_size": 1, "repeats": {"most": 5}},
    }
    return {**identity, **changes}


@pytest.mark.parametrize(
    ("given_up", "why"),
    [
        ([], "new"),
        ([point(epoch=1)], "changed: epoch 1 -> 0"),
        ([point(protocol=2)], "changed: protocol 2 -> 1"),
        ([point(versions={"vllm": "0.8", "torch": "2.7"})], "changed: versions.vllm 0.8 -> 0.9"),
        ([point(checkpoint=checkpoint(64))], "changed: checkpoint.recipe.format.weights.group_size 64 -> 128"),
        ([point(params={"batch_size": 1, "repeats": {"most": 3}})], "changed: params.repeats.most 3 -> 5"),
        # the nearest of two: one field, not two
        ([point(epoch=1, protocol=2), point(protocol=3)], "changed: protocol 3 -> 1"),
        # other points altogether: of a sweep, a device, a stage, a model, and of a scheme that quantizes nothing
        ([point(params={"batch_size": 2, "repeats": {"most": 5}})], "new"),
        ([point(gpu="a100")], "new"),
        ([point(stage="throughput")], "new"),
        ([point(checkpoint=checkpoint(model="other"))], "new"),
        ([point(checkpoint=MODEL)], "new"),
        # a checkpoint that the store no longer has
        ([point(checkpoint=None)], "changed: checkpoint"),
    ],
)
def test_why_a_point_is_missing(given_up, why):
    assert why_missing(point(), given_up) == why


@pytest.fixture
def config(tmp_path):
    return {**copy.deepcopy(CONFIG), "store": str(tmp_path / "store")}


def study_of(config):
    study = load_study(copy.deepcopy(config))
    return build_manifest(study), study.store


def keep(manifest, store, wanted=lambda point: True, **record):
    for each in manifest["points"]:
        if wanted(each):
            given = {"status": "ok", "rows": [], "run_id": "r", "measured_s": 2.0} | record
            store.write_point(each["identity"], **given)


def missing_lines(text):
    """{(variant, stage): (count, why)}"""
    found = {}
    for line in text.splitlines():
        where, separator, why = line.partition(" missing: ")
        if separator:
            *variant, stage, count = where.split()
            found[" ".join(variant), stage] = (int(count), why)
    return found


def test_an_empty_store_lacks_everything_and_nothing_is_known_of_time(config):
    manifest, store = study_of(config)
    text = plan_text(manifest, store)
    assert "checkpoints: 0 of 1 quantized" in text and "tiny/rtn-int4: to be quantized" in text
    # 1 probe + 2 support + 9 gemm + 2 variants x (load, latency, throughput, accuracy, perplexity, 2 serving)
    assert "points: 0 of 26 measured, 26 missing" in text
    assert {why for _, why in missing_lines(text).values()} == {"new"}
    assert "device time on cpu: unknown; nothing like it measured yet: accuracy, gemm" in text
    assert not store.root.exists()


def test_a_full_store_lacks_nothing(config):
    manifest, store = study_of(config)
    keep(manifest, store)
    text = plan_text(manifest, store)
    assert "points: 26 of 26 measured, 0 missing" in text and "nothing to measure" in text
    assert missing_lines(text) == {}


def test_a_longer_sweep_is_new_and_a_changed_setting_is_named(config):
    manifest, store = study_of(config)
    keep(manifest, store)
    config["latency"]["batch_sizes"] = [1, 2]
    config["accuracy"][0]["questions"] = 9
    config["schemes"] = ["bf16", "rtn-int4", "int8-online"]
    lines = missing_lines(plan_text(*study_of(config)))
    assert lines["cpu tiny/bf16", "latency"] == (1, "new")
    assert lines["cpu tiny/bf16", "accuracy"] == (1, "changed: params.questions 8 -> 9")
    assert ("cpu tiny/bf16", "load") not in lines
    assert lines["cpu tiny/int8-online", "serving"][0] == 2


def test_a_scheme_more_is_new_even_beside_a_likeness_of_it(config):
    config["calibration"] = {"dataset": "arithmetic", "samples": 16}
    manifest, store = study_of(config)
    keep(manifest, store)
    config["schemes"].append("gptq-int4")
    # its matrix products are rtn-int4's, whose format it has
    lines = missing_lines(plan_text(*study_of(config)))
    assert {variant for variant, _ in lines} == {"cpu tiny/gptq-int4"}
    assert {why for _, why in lines.values()} == {"new"}


def test_a_failed_point_is_measured_and_its_reason_is_shown(config):
    manifest, store = study_of(config)
    keep(manifest, store, lambda point: point["scheme"] != "rtn-int4")
    failed = {"status": "unsupported", "reason": "no kernel", "measured_s": None}
    keep(manifest, store, lambda point: point["scheme"] == "rtn-int4" and point["stage"] != "gemm", **failed)
    text = plan_text(manifest, store)
    assert "unsupported: cpu tiny/rtn-int4, 7 points: no kernel" in text
    assert missing_lines(text) == {("cpu", "gemm"): (4, "new")}


def test_skips_are_named_with_their_reason(config):
    config["schemes"] = ["bf16", "int8-online"]
    text = plan_text(*study_of(config))
    assert "skipped: gemm of tiny/int8-online on cpu: quantized by the engine while it loads" in text


def test_time_is_the_median_of_the_stages_points_and_one_start_per_job(config):
    manifest, _ = study_of(config)
    latency = [p for p in manifest["points"] if p["stage"] == "latency"]
    known = {
        name: {"identity": latency[0]["identity"], "status": status, "measured_s": seconds}
        for name, status, seconds in (("a", "ok", 10.0), ("b", "ok", 30.0), ("c", "ok", 80.0), ("d", "invalid", 1e6))
    }
    runs = {
        "r": {"gpu": "cpu", "stage": "measure_engine", "engine_start_s": 7.0},
        "s": {"gpu": "cpu", "stage": "measure_engine", "engine_start_s": 9.0},
        "t": {"gpu": "h200", "stage": "measure_engine", "engine_start_s": 500.0},
        "crashed": {"gpu": "cpu", "stage": "measure_engine", "engine_start_s": None},
    }
    # two variants, one point each: 2 x 30 s, and two engine starts of 8 s
    assert estimate(latency, known, runs) == {"cpu": (pytest.approx(76.0), set())}
    both = latency + [p for p in manifest["points"] if p["stage"] == "load"]
    assert estimate(both, known, runs) == {"cpu": (pytest.approx(76.0), {"load"})}
    assert estimate([], known, runs) == {}
