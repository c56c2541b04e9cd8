"""What jobs will take: the rule's arithmetic, and how measurements correct it. The store and its numbers are made up."""

import copy

import pytest
from quantbench import guess
from quantbench.estimate import Evidence, estimate_jobs, estimate_study, store_lacks
from quantbench.manifest import build_manifest
from quantbench.points import lacking
from quantbench.store import Store
from quantbench.study import load_study
from workflow_study import CONFIG

BF16, INT4 = ("cpu", "tiny", "bf16"), ("cpu", "tiny", "rtn-int4")
CHIP = guess.Device("engine-cuda", bandwidth_bytes_per_s=1e12, flops_per_s=100e12)
# 7 layers of 100 by 100 and two tables of 64 by 100, say
SIZE = guess.Size(parameters=1e9, bytes=2e9, kv_bytes_per_token=1e5)
REPEATS = {"least": 5, "most": 15, "relative_ci": 0.02, "confidence": 0.95}


@pytest.fixture(scope="module")
def manifest():
    return build_manifest(load_study(copy.deepcopy(CONFIG)))


def points_of(manifest, stage, scheme="bf16"):
    return [point for point in manifest["points"] if point["stage"] == stage and point["scheme"] in (scheme, None)]


def measured(points, seconds):
    return [
        {"identity": point["identity"], "status": "ok", "rows": [{}], "measured_s": seconds, "run_id": "r"}
        for point in points
    ]


def run(scheme="bf16", stage="measure_engine", start_s=4.0, measured_s=50.0, **more):
    # a minute in all
    times = {"started_at": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T00:01:00+00:00"}
    name = {"stage": stage, "gpu": "cpu", "model": "tiny", "scheme": scheme}
    return {**name, **times, "engine_start_s": start_s, "measured_s": measured_s} | more


# --- the rule -------------------------------------------------------------------------------------------------------


def test_size_of_a_variant_is_its_layers():
    config = {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_hidden_layers": 3,
    }
    config |= {"intermediate_size": 256, "vocab_size": 1000, "tie_word_embeddings": False}
    plain = guess.size_of(config, {"format": None, "ignore": []})
    # a block: qkv (4 + 2 x 2) x 32 x 128, o 128 x 128, gate and up 2 x 256 x 128, down 128 x 256; vocabulary padded to 1024
    block, table = 256 * 128 + 128 * 128 + 512 * 128 + 128 * 256, 1024 * 128
    assert plain.parameters == 3 * block + 2 * table
    assert plain.bytes == 2 * plain.parameters
    # a key and a value of 2 bytes, 2 heads of 32, 3 blocks
    assert plain.kv_bytes_per_token == 2 * 2 * 2 * 32 * 3
    int8 = {"weights": {"num_bits": 8, "type": "int", "strategy": "tensor"}, "input_activations": None}
    # one byte a weight and 4 bytes a layer; head and table stay in 16 bit
    assert guess.size_of(config, {"format": int8, "ignore": ["lm_head"]}).bytes == 3 * (block + 4 * 4) + 2 * 2 * table
    tied = guess.size_of(config | {"tie_word_embeddings": True}, {"format": None, "ignore": []})
    assert tied.bytes == 2 * (3 * block + table)


def test_a_model_of_experts_has_the_size_of_its_files():
    size = guess.size_of({"num_experts": 8}, {"format": None, "ignore": []}, stored_bytes=60e9)
    assert (size.bytes, size.parameters) == (60e9, 30e9)
    assert guess.size_of({"num_experts": 8}, {"format": None, "ignore": []}).parameters == guess.UNKNOWN_PARAMETERS


def test_a_batch_is_its_prompts_and_then_its_steps():
    # prompts: 8 x 100 tokens x 2 x 1e9 = 1.6e12 operations, 0.016 s at 100e12; at half of it 0.032 s
    prompts = guess.STEP_S["engine-cuda"] + 0.032
    # a step: 2e9 + 1e5 x 8 x 105 bytes = 2.084e9, at half of 1e12 per s
    step = guess.STEP_S["engine-cuda"] + 2.084e9 / 0.5e12
    assert guess.batch_s(CHIP, SIZE, 8, 100, 10) == pytest.approx(prompts + 10 * step)
    point = {
        "stage": "latency",
        "params": {"batch_size": 8, "input_tokens": 100, "output_tokens": 10, "repeats": REPEATS},
    }
    # 3 passes to warm up and (5 + 15) / 2 that count
    assert guess.point_s(point, CHIP, SIZE) == pytest.approx(13 * (prompts + 10 * step))


def test_a_slow_schedule_decides_and_a_fast_one_does_not():
    params = {"input_tokens": 100, "output_tokens": 10, "requests": 200, "seed": 0}
    point = {"stage": "serving", "params": params | {"load": "rate", "rate_per_s": 1.0}}
    assert 200 < guess.point_s(point, CHIP, SIZE) < 210
    fast = {"stage": "serving", "params": params | {"load": "rate", "rate_per_s": 1e6}}
    assert guess.point_s(fast, CHIP, SIZE) < 20
    # twice the users of a device with room answer the same requests sooner
    two, four = ({"stage": "serving", "params": params | {"load": "concurrency", "concurrency": n}} for n in (2, 4))
    assert guess.point_s(four, CHIP, SIZE) < guess.point_s(two, CHIP, SIZE)


@pytest.mark.parametrize(
    "stage", ["load", "latency", "throughput", "serving", "accuracy", "perplexity", "gemm", "probe"]
)
def test_a_larger_model_takes_longer_or_as_long(manifest, stage):
    larger = guess.Size(70e9, 140e9, 3e5)
    for point in points_of(manifest, stage):
        small_s, large_s = (guess.point_s(point["identity"], CHIP, size) for size in (SIZE, larger))
        assert 0 <= small_s <= large_s < 1e5
        # rate loads may wait for their schedule
        assert small_s < large_s or stage in ("load", "gemm", "probe", "serving")


def test_an_engines_start_and_memory_grow_with_the_weights():
    small, large = guess.Size(1e9, 2e9, 0), guess.Size(70e9, 140e9, 0)
    # 138 GB more at 1 GB/s
    assert guess.engine_start_s(CHIP, large, True) - guess.engine_start_s(CHIP, small, True) == pytest.approx(138)
    assert guess.engine_memory_bytes(CHIP, large, {}) - guess.engine_memory_bytes(CHIP, small, {}) == pytest.approx(
        138e9
    )
    cpu = guess.Device("engine-cpu", 20e9, 100e9)
    # weights, their repacked copy, and the cache
    expected = guess.HOST_BYTES["engine-cpu"] + 2 * 2e9 + 5e9
    assert guess.engine_memory_bytes(cpu, small, {"kv_cache_memory_bytes": 5e9}) == expected
    # 8B: 16 GB of host memory hold the model, so as much and more is asked for
    assert guess.quantize_memory_bytes(guess.Size(8e9, 16e9, 0)) > 16e9


def test_calibrated_quantization_takes_longer_than_rounding_and_longest_on_a_cpu():
    size, calibration = guess.Size(8e9, 16e9, 0), {"samples": 512, "max_tokens": 2048}
    # the toolkit's documentation: a minute, and half an hour
    assert guess.quantize_s(size, None, True) == pytest.approx(60)
    assert guess.quantize_s(size, calibration, True) == pytest.approx(1800)
    # 2 passes x 2 operations x 8e9 parameters x 512 x 2048 tokens / 100e9 per s
    assert guess.quantize_s(size, calibration, False) == pytest.approx(2 * 2 * 8e9 * 512 * 2048 / 100e9)


# --- with evidence --------------------------------------------------------------------------------------------------


def test_without_evidence_every_job_is_a_guess(manifest):
    everything = {point["key"] for point in manifest["points"]} | {c["key"] for c in manifest["checkpoints"]}
    found = estimate_jobs(manifest, everything, Evidence())
    assert {(rule, target) for rule, target in found} == {
        ("quantize_model", ("tiny", "rtn-int4")),
        *((rule, ("cpu", None, None)) for rule in ("probe_gpu", "ask_support", "measure_gemm")),
        *((rule, variant) for rule in ("measure_engine", "measure_serving") for variant in (BF16, INT4)),
    }
    assert {estimate.basis for estimate in found.values()} == {"guess"}
    engine = found["measure_engine", BF16]
    # load, latency, throughput, accuracy, perplexity, reference
    assert engine.points == 6 and engine.seconds > engine.start_s > 0 and engine.memory_bytes > 1e9
    assert engine.guessed == ("accuracy", "engine start", "latency", "perplexity", "process", "reference", "throughput")


def test_only_what_is_lacking_is_counted(manifest):
    [one] = points_of(manifest, "latency")
    found = estimate_jobs(manifest, {one["key"]}, Evidence())
    assert list(found) == [("measure_engine", BF16)] and found["measure_engine", BF16].points == 1
    assert estimate_jobs(manifest, set(), Evidence()) == {}


def test_measured_points_starts_and_rests_add_up(manifest):
    [latency] = points_of(manifest, "latency")
    evidence = Evidence(points=measured([latency], 30.0), runs=[run(start_s=4.0, measured_s=50.0)])
    found = estimate_jobs(manifest, {latency["key"]}, evidence)["measure_engine", BF16]
    # the same point again: 60 - 4 - 50 = 6 s of process, 4 s of start, 30 s
    assert found.seconds == pytest.approx(40.0) and found.start_s == pytest.approx(10.0)
    assert found.basis == "measured" and found.guessed == ()


def test_a_larger_batch_takes_longer_in_proportion_to_the_rule(manifest):
    config = copy.deepcopy(CONFIG)
    config["latency"]["batch_sizes"] = [1, 16]
    manifest = build_manifest(load_study(config))
    small, large = points_of(manifest, "latency")
    evidence = Evidence(points=measured([small], 30.0), runs=[run()])
    found = estimate_jobs(manifest, {large["key"]}, evidence)["measure_engine", BF16]
    size = guess.size_of(manifest["models"]["tiny"]["config"], {"format": None, "ignore": []})
    device = guess.device_of(manifest["gpus"]["cpu"])
    ratio = guess.point_s(large["identity"], device, size) / guess.point_s(small["identity"], device, size)
    assert ratio > 1.01 and found.basis == "measured"
    assert found.seconds == pytest.approx(10.0 + 30.0 * ratio)


def test_the_same_checkpoints_points_are_believed_before_others(manifest):
    [plain], [coarse] = points_of(manifest, "latency"), points_of(manifest, "latency", "rtn-int4")
    evidence = Evidence(points=measured([plain], 30.0), runs=[run()])
    wanted = {coarse["key"]}
    other = estimate_jobs(manifest, wanted, evidence)["measure_engine", INT4]
    # nothing but bf16's: in proportion to the bytes, and measured all the same
    assert other.basis == "measured" and 25 < other.seconds < 40
    evidence.points += measured([coarse], 90.0)
    own = estimate_jobs(manifest, wanted, evidence)["measure_engine", INT4]
    assert own.seconds - other.seconds > 50


def test_the_largest_memory_seen_of_a_variant_is_asked_for_again(manifest):
    [latency] = points_of(manifest, "latency")
    runs = [run(peak_memory_bytes=5e9), run(peak_memory_bytes=7e9), run("rtn-int4", peak_memory_bytes=9e9), run()]
    found = estimate_jobs(manifest, {latency["key"]}, Evidence(runs=runs))
    assert found["measure_engine", BF16].memory_bytes == 7e9


def test_a_killed_run_says_nothing_of_the_rest(manifest):
    [latency] = points_of(manifest, "latency")
    found = estimate_jobs(manifest, {latency["key"]}, Evidence(runs=[run(ended_at=None)]))["measure_engine", BF16]
    assert found.guessed == ("latency", "process") and found.start_s == pytest.approx(guess.PROCESS_S + 4.0)


def test_quantizing_follows_checkpoints_of_its_kind(manifest):
    [entry] = [entry for entry in manifest["checkpoints"] if entry["quantized"]]
    model = manifest["checkpoints"][0]["key"]
    past = {"identity": entry["identity"], "quantize_s": 3.0, "device": "cpu", "peak_memory_bytes": 5e8}
    assert entry["identity"]["model"] == model
    calibrated = past | {
        "identity": entry["identity"] | {"calibration": {"samples": 8, "max_tokens": 8}},
        "quantize_s": 900.0,
    }
    found = estimate_jobs(manifest, {entry["key"]}, Evidence(checkpoints=[past, calibrated]))
    [estimate] = found.values()
    # rounding once took 3 s, so it does again; a calibrated one says nothing
    assert estimate.seconds == pytest.approx(guess.PROCESS_S + 6.0) and estimate.memory_bytes == 5e8
    assert estimate.basis == "measured"


# --- from a store ---------------------------------------------------------------------------------------------------


def test_the_store_corrects_the_rule_and_another_study_helps(tmp_path):
    config = {**copy.deepcopy(CONFIG), "store": str(tmp_path / "store")}
    study = load_study(config)
    manifest, store = build_manifest(study), study.store
    for point in manifest["points"]:
        if point["stage"] != "accuracy":
            store.write_point(point["identity"], status="ok", rows=[{}], run_id="r", measured_s=2.0)
        if point["stage"] == "reference":
            with store.new_folder("references", point["identity"], {}):
                pass
    store.write_run(run(run_id="r"))
    assert len(store_lacks(manifest, store)) == 3  # two accuracies, one checkpoint
    before = estimate_study(manifest, store)
    assert before["measure_engine", BF16].guessed == ("accuracy",)
    other = copy.deepcopy(points_of(manifest, "accuracy")[0]["identity"])
    other["params"]["questions"] = 4
    store.write_point(other, status="ok", rows=[], run_id="r", measured_s=50.0)
    after = estimate_study(manifest, store)["measure_engine", BF16]
    # 8 questions: at most twice the 50 s of 4, and no less
    assert after.basis == "measured" and 50 < after.seconds - after.start_s <= 100
    assert estimate_study(manifest, store, elsewhere=False)["measure_engine", BF16].guessed == ("accuracy",)
    assert estimate_study(manifest, store, set()) == {}


def test_a_store_is_asked_for_one_point_or_for_many(tmp_path):
    store = Store(tmp_path)
    # two letters name a folder of the store: one key in "ab", five in "cd"
    keys = ["ab" + "0" * 62, *("cd" + str(number) * 62 for number in range(5))]
    points = [{"key": key, "stage": "load"} for key in keys]
    assert lacking(points, store) == set(keys)
    for key in (keys[0], keys[1], keys[4]):
        path = store.point_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    # a point that is being written has another name
    (path.parent / f".{keys[2]}.json.partial").write_text("")
    assert lacking(points, store) == {keys[2], keys[3], keys[5]}
    assert lacking(points[:1], store) == set() and lacking([], store) == set()
    # the baseline's distributions are files beside their point, and others need them
    reference = {"key": keys[0], "stage": "reference"}
    store.point_path(keys[0]).write_text('{"status": "ok"}')
    assert lacking([reference], store) == {keys[0]}
    store.point_path(keys[0]).write_text('{"status": "unsupported"}')
    assert lacking([reference], store) == set()
