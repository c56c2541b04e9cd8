"""The plan: what is missing, why, and the time it would take, from a store that a test fills itself."""

import copy
import re

import pytest
from quantbench.estimate import Estimate
from quantbench.manifest import build_manifest
from quantbench.plan import device_lines, duration, plan_text, why_missing
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
            if each["stage"] == "reference":
                with store.new_folder("references", each["identity"], {}):
                    pass


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
    # 1 probe + 2 support + 9 gemm + 2 variants x (load, latency, throughput, accuracy, perplexity, 2 serving, and either
    # the distributions of the baseline or the distance from them)
    assert "points: 0 of 28 measured, 28 missing" in text
    assert {why for _, why in missing_lines(text).values()} == {"new"}
    [cpu, quantizing] = [line for line in text.splitlines() if line.startswith("device time on ")]
    # probe, gemm, and an engine and a server for each of two variants; asking for support is done without the device
    assert re.match(r"device time on cpu: about \d+\.\d minutes in 6 jobs; `--profile slurm` asks for \d+\.\d h; ", cpu)
    assert "nothing like it measured yet: accuracy, engine start, fidelity, gemm, latency" in cpu
    assert quantizing.startswith("device time on the quantizing node: about") and "in 1 job;" in quantizing
    assert not store.root.exists()


def test_a_full_store_lacks_nothing(config):
    manifest, store = study_of(config)
    keep(manifest, store)
    [made] = [entry for entry in manifest["checkpoints"] if entry["quantized"]]
    with store.new_folder("checkpoints", made["identity"], {}):
        pass
    for point in manifest["layers"]:
        store.write_point(point["identity"], status="ok", rows=[], run_id="r")
    text = plan_text(manifest, store)
    assert "points: 28 of 28 measured, 0 missing" in text and "nothing to measure" in text
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
    assert "unsupported: cpu tiny/rtn-int4, 8 points: no kernel" in text
    assert missing_lines(text) == {("cpu", "gemm"): (4, "new")}


def test_skips_are_named_with_their_reason(config):
    config["schemes"] = ["bf16", "int8-online"]
    text = plan_text(*study_of(config))
    assert "skipped: gemm of tiny/int8-online on cpu: quantized by the engine while it loads" in text


def test_hours_are_summed_per_gpu_as_expected_and_as_asked_for():
    engine = Estimate(seconds=1800.0, memory_bytes=1e9, basis="measured", points=9)
    guessed = Estimate(seconds=5400.0, memory_bytes=1e9, basis="guess", guessed=("serving", "engine start"), points=4)
    estimates = {
        ("measure_engine", ("h200", "tiny", "bf16")): engine,
        ("measure_engine", ("h200", "tiny", "rtn-int4")): engine,
        ("measure_engine", ("a100", "tiny", "bf16")): engine,
        ("measure_serving", ("a100", "tiny", "bf16")): guessed,
        ("ask_support", ("a100", None, None)): engine,
        ("quantize_model", ("tiny", "rtn-int4")): engine,
    }
    asked = {"measure_engine": 7200, "measure_serving": 14400, "quantize_model": 3600}
    assert device_lines(estimates, lambda rule, target, estimate: asked[rule]) == [
        # 1800 + 5400 s are 2 h; 2 + 4 h
        "device time on a100: about 2.0 hours in 2 jobs; `--profile slurm` asks for 6.0 h;"
        " nothing like it measured yet: engine start, serving",
        # twice half an hour; twice 2 h
        "device time on h200: about 60.0 minutes in 2 jobs; `--profile slurm` asks for 4.0 h; as measured before",
        "device time on the quantizing node: about 30.0 minutes in 1 job; `--profile slurm` asks for 1.0 h; as measured before",
    ]
    # without a cluster's limits, what is expected
    assert "asks for 2.0 h" in device_lines(estimates)[0]
    assert device_lines({}) == []
    assert (duration(90), duration(9000)) == ("1.5 minutes", "2.5 hours")
