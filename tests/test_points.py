"""Identities and keys: what changes a point's key, what does not, and that a job unfolds into the manifest's points."""

import copy
import json
import random
import shutil

import pytest
import yaml
from quantbench import manifest as manifest_module
from quantbench.errors import UserError
from quantbench.jobs import build_jobs, quantize_jobs, text
from quantbench.keys import canonical_json, key
from quantbench.manifest import build_manifest
from quantbench.points import JOB_OF_STAGE, PROTOCOL, check_versions, expand, missing_points
from quantbench.study import ROOT, load_study
from workflow_study import CONFIG

# What stands in another stage's identity: the distributions that are compared with, the loads that a search sends.
COMPARED_WITH = {"reference": "fidelity", "serving": "search"}
SEARCH = {"slo": {"ttft_s": 0.5}, "search": {"least_rate_per_s": 5, "most_rate_per_s": 40}}
# On no device in particular.
DEVICELESS = {"sensitivity"}


@pytest.fixture
def config(tmp_path):
    scan = [{"scheme": "rtn-int4", "dataset": "arithmetic", "documents": 4}]
    asked = {"sensitivity": scan, "serving": CONFIG["serving"] | SEARCH}
    return {**copy.deepcopy(CONFIG), "store": str(tmp_path / "store"), **asked}


@pytest.fixture
def root(tmp_path):
    """A folder with the shipped schemes and data sheets, to be edited."""
    shutil.copytree(ROOT / "config", tmp_path / "root" / "config")
    return tmp_path / "root"


def manifest_of(config, root=ROOT):
    return build_manifest(load_study(copy.deepcopy(config), root))


def keys(manifest, stage=None, scheme=None):
    """Keys of all points, or of those of a stage or scheme."""
    points = manifest["points"]
    return {p["key"] for p in points if stage in (None, p["stage"]) and scheme in (None, p["scheme"])}


def shuffled(value, rng):
    """The same value with the keys of every mapping in another order."""
    if isinstance(value, dict):
        names = list(value)
        rng.shuffle(names)
        return {name: shuffled(value[name], rng) for name in names}
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_the_digest_of_sorted_json():
    # printf '{"a":[1,2],"b":{"c":null}}' | sha256sum
    assert canonical_json({"b": {"c": None}, "a": [1, 2]}) == '{"a":[1,2],"b":{"c":null}}'
    assert key({"b": {"c": None}, "a": [1, 2]}) == "c86ec83bbcf2cd79e5cc99ee36d5726e7f66bcc6f7b8b83d0b5e6e53ce6302d6"


def test_order_of_keys_and_comments_change_no_key(config):
    plain = manifest_of(config)
    for seed in range(3):
        turned = yaml.safe_dump(shuffled(config, random.Random(seed)), sort_keys=False)
        again = manifest_of(yaml.safe_load("# a comment\n" + turned.replace("\n", "   # and another\n", 1)))
        assert canonical_json(again) == canonical_json(plain)
        assert key(again) == key(plain)


def test_title_and_names_of_study_and_model_change_no_point(config):
    plain = manifest_of(config)
    config |= {"title": "Another?", "study": "other"}
    config["models"][0]["name"] = "renamed"
    assert keys(manifest_of(config)) == keys(plain)


def test_every_key_is_of_its_identity_and_every_stage_has_a_job(config):
    found = manifest_of(config)
    assert all(point["key"] == key(point["identity"]) for point in found["points"])
    assert {point["stage"] for point in found["points"]} == PROTOCOL.keys() == JOB_OF_STAGE.keys()


@pytest.mark.parametrize("stage", PROTOCOL)
def test_a_raised_protocol_costs_exactly_its_stage(config, monkeypatch, stage):
    plain = manifest_of(config)
    monkeypatch.setitem(PROTOCOL, stage, PROTOCOL[stage] + 1)
    assert manifest_module.PROTOCOL is PROTOCOL
    raised = manifest_of(config)
    for other in PROTOCOL:
        same = keys(raised, other) == keys(plain, other)
        assert same == (other not in (stage, COMPARED_WITH.get(stage))), other
        assert same or not keys(raised, other) & keys(plain, other)


def test_a_raised_epoch_costs_every_point_of_its_device(config, root):
    plain = manifest_of(config, root)
    sheets = yaml.safe_load((root / "config/gpus.yaml").read_text())
    sheets["h100"]["epoch"] += 1
    (root / "config/gpus.yaml").write_text(yaml.safe_dump(sheets))
    assert keys(manifest_of(config, root)) == keys(plain)
    sheets["cpu"]["epoch"] += 1
    (root / "config/gpus.yaml").write_text(yaml.safe_dump(sheets))
    raised = manifest_of(config, root)
    assert keys(raised) & keys(plain) == keys(plain, "sensitivity")
    assert [c["key"] for c in raised["checkpoints"]] == [c["key"] for c in plain["checkpoints"]]


def test_a_changed_description_of_a_device_or_a_scheme_costs_nothing(config, root):
    plain = manifest_of(config, root)
    sheets = yaml.safe_load((root / "config/gpus.yaml").read_text())
    sheets["cpu"] |= {"description": "another", "sources": {"another": "another"}}
    (root / "config/gpus.yaml").write_text(yaml.safe_dump(sheets))
    scheme = yaml.safe_load((root / "config/schemes/rtn-int4.yaml").read_text())
    (root / "config/schemes/rtn-int4.yaml").write_text(yaml.safe_dump(scheme | {"description": "another"}))
    assert keys(manifest_of(config, root)) == keys(plain)


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        (lambda c: c["engine"].update(max_num_seqs=8), set(PROTOCOL) - {"probe", "support", "gemm"} - DEVICELESS),
        (lambda c: c["engine"].update(dtype="float16"), set(PROTOCOL) - {"probe"} - DEVICELESS),
        (lambda c: c["repeats"].update(most=3), {"latency", "throughput", "gemm"}),
        (lambda c: c["accuracy"][0].update(questions=9), {"accuracy"}),
        (lambda c: c["serving"].update(seed=1), {"serving", "search"}),
        (lambda c: c["serving"].update(slo={"ttft_s": 1}), {"search"}),
        (lambda c: c["serving"].update(ramp_s=2, burstiness=[0.5]), {"serving", "search"}),
        (lambda c: c["perplexity"][0].update(documents=5), {"perplexity"}),
        (lambda c: c["fidelity"][0].update(top_k=9), {"reference", "fidelity"}),
        # A second start of the baseline has everything again that needs the whole model, but the distributions.
        (lambda c: c.update(noise_floor=True), set(PROTOCOL) - {"probe", "support", "gemm", "reference"} - DEVICELESS),
        (lambda c: c["sensitivity"][0].update(documents=5), {"sensitivity"}),
        (lambda c: c["kernels"].update(tokens=[2]), {"gemm"}),
        (lambda c: c["kernels"].update(products=["linear", "relu_linear"]), {"gemm"}),
        (lambda c: c["kernels"].update(tensor_parallel_size=2), {"gemm"}),
    ],
)
def test_a_setting_costs_exactly_the_stages_it_decides(config, change, stages):
    plain = manifest_of(config)
    change(config)
    found = manifest_of(config)
    assert {stage for stage in PROTOCOL if keys(found, stage) != keys(plain, stage)} == stages


def test_schemes_of_one_format_share_their_matrix_products(config):
    config["calibration"] = {"dataset": "arithmetic", "samples": 16}
    config["schemes"] = ["bf16", "rtn-int4", "gptq-int4"]
    found = manifest_of(config)
    schemes = found["schemes"]
    assert schemes["rtn-int4"]["format"] == schemes["gptq-int4"]["format"]
    shared = keys(found, "gemm", "rtn-int4")
    assert shared == keys(found, "gemm", "gptq-int4")
    # 4 kinds of quantized layer, and the output head that bf16 has too
    assert len(shared) == 5 and len(shared & keys(found, "gemm", "bf16")) == 1
    # and whether a device can run them, which the format alone decides; all else depends on the checkpoint
    for stage in set(PROTOCOL) - {"probe", "support", "gemm"}:
        assert not keys(found, stage, "rtn-int4") & keys(found, stage, "gptq-int4")


def test_contenders_and_shape_sets_add_points_and_change_none(config):
    plain = manifest_of(config)
    config["kernels"] |= {"shapes": ["llama-3.1-8b"], "contenders": ["dense-fp32"]}
    found = manifest_of(config)
    assert keys(plain) < keys(found)
    added = [point for point in found["points"] if point["key"] not in keys(plain)]
    assert {point["stage"] for point in added} == {"gemm"}
    tokens = len(config["kernels"]["tokens"])
    # 5 layers of each of two shape owners in fp32
    fp32 = [point for point in added if point["contender"] == "dense-fp32"]
    assert {point["scheme"] for point in fp32} == {None} and len(fp32) == 2 * 5 * tokens
    assert {point["identity"]["params"]["dtype"] for point in fp32} == {"float32"}
    # 5 layers of the 8B shapes in either scheme's format; the head is left in 16 bits by both
    schemes = [point for point in added if point["contender"] is None]
    assert {point["model"] for point in schemes} == {"llama-3.1-8b"}
    assert len({point["key"] for point in schemes}) == (5 + 4) * tokens


def test_a_kernel_that_a_device_lacks_is_skipped_with_its_reason(config):
    config["kernels"]["contenders"] = "all"
    found = manifest_of(config)
    skipped = {skip["contender"]: skip["reason"] for skip in found["skips"] if skip.get("contender")}
    measured = {point["contender"] for point in found["points"] if point.get("contender")}
    assert skipped and measured and not measured & skipped.keys()
    assert set(found["contenders"]) == measured | skipped.keys()
    assert all("CUDA" in reason for reason in skipped.values())


def test_what_a_gpu_cannot_run_is_skipped_before_anything_starts(config):
    config |= {"gpus": ["v100", "b200", "cpu"], "schemes": ["bf16", "rtn-int4", "int8-smoothquant"]}
    config["calibration"] = {"dataset": "arithmetic", "samples": 16}
    config["kernels"]["contenders"] = ["dense-fp32"]
    found = manifest_of(config)
    skips = {(skip["gpu"], skip["scheme"], skip["stage"]) for skip in found["skips"]}
    # The pinned engine's CUDA has dropped Volta whole: no probe either. Blackwell has no INT8 kernel in vLLM.
    assert ("v100", None, "probe") in skips and not [
        p for p in found["points"] if (p["gpu"], p["stage"]) == ("v100", "probe")
    ]
    refused = {(gpu, scheme) for gpu, scheme, _ in skips if scheme}
    assert refused == {
        ("v100", "bf16"),
        ("v100", "rtn-int4"),
        ("v100", "int8-smoothquant"),
        ("b200", "int8-smoothquant"),
    }
    assert {skip["gpu"] for skip in found["skips"] if skip.get("contender")} == {"v100"}
    for gpu, scheme in refused:
        asked = {"load", "gemm", "latency", "throughput", "serving", "search", "accuracy", "perplexity", "fidelity"}
        assert {stage for g, s, stage in skips if (g, s) == (gpu, scheme)} == asked
        stages = {p["stage"] for p in found["points"] if (p["gpu"], p["scheme"]) == (gpu, scheme)}
        assert stages == {"support"}


# --- jobs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(config):
    found = manifest_of(config)
    return found, build_jobs(found, load_study(config).store)


def test_jobs_unfold_into_the_manifests_points_again(jobs):
    found, by_name = jobs
    unfolded = []
    for name, targets in by_name.items():
        for job in targets.values():
            # as the script gets it
            points = expand(json.loads(text(job)))
            assert {JOB_OF_STAGE[point["stage"]] for point in points} == {name}
            assert all(point["key"] == key(point["identity"]) for point in points)
            unfolded += points
    assert len(unfolded) == len({point["key"] for point in unfolded})
    by_key = {point["key"]: point["identity"] for point in found["points"]}
    assert {point["key"]: point["identity"] for point in unfolded} == by_key


def test_a_jobs_text_depends_on_its_own_points_alone(config):
    def texts(config):
        study = load_study(copy.deepcopy(config))
        made = build_jobs(build_manifest(study), study.store)
        return {(name, target): text(job) for name, targets in made.items() for target, job in targets.items()}

    plain = texts(config)
    assert texts(shuffled(config, random.Random(1))) == plain
    config["latency"]["batch_sizes"] = [1, 2]
    changed = {name for name, job in texts(config).items() if job != plain[name]}
    assert changed == {("measure_engine", ("cpu", "tiny", scheme)) for scheme in ("bf16", "rtn-int4")}


def test_only_what_the_store_lacks_is_missing(jobs, config):
    _, by_name = jobs
    store = load_study(config).store
    job = by_name["measure_engine"]["cpu", "tiny", "bf16"]
    points = expand(job)
    assert [point["key"] for point in missing_points(job, store)] == [point["key"] for point in points]
    kept = points.pop(1)
    store.write_point(kept["identity"], status="unsupported", reason="why", rows=[], run_id="r")
    assert [point["key"] for point in missing_points(job, store)] == [point["key"] for point in points]


def test_a_server_is_told_the_load_point_of_its_engine(jobs):
    found, by_name = jobs
    for (_, _, scheme), job in by_name["measure_serving"].items():
        assert {key(job["load_point"])} == keys(found, "load", scheme)


def test_a_variant_without_a_toolkit_is_not_quantized(jobs, config):
    found, _ = jobs
    made = quantize_jobs(found, load_study(config).store)
    assert list(made) == [("tiny", "rtn-int4")]
    assert key(made["tiny", "rtn-int4"]["identity"]) in {entry["key"] for entry in found["checkpoints"]}


def test_an_environment_of_other_versions_is_refused(jobs):
    _, by_name = jobs
    points = expand(by_name["measure_engine"]["cpu", "tiny", "bf16"])
    installed = {**points[0]["versions"], "lm_eval": "0"} | {n: v for p in points for n, v in p["versions"].items()}
    check_versions(points, installed)
    with pytest.raises(UserError, match=r"torch 0\.1 is installed, but"):
        check_versions(points, installed | {"torch": "0.1"})
