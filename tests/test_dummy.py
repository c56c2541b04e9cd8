"""Dummy weights: the speed of an architecture from its config.json alone, and nothing said about its answers."""

import copy
import json

import pytest
from quantbench import dummy, memory
from quantbench.errors import UserError
from quantbench.jobs import build_jobs
from quantbench.keys import key
from quantbench.load import read_token_ids
from quantbench.manifest import build_manifest
from quantbench.schemes import load_schemes
from quantbench.sources import model_identity, parse
from quantbench.staging import stage
from quantbench.store import Store
from quantbench.study import ROOT, load_study
from workflow_study import CONFIG

ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made-up").mkdir()
    (tmp_path / "made-up" / "config.json").write_text(json.dumps(ARCHITECTURE))
    return tmp_path / "made-up"


@pytest.fixture
def config(tmp_path, folder):
    model = {"name": "made-up", "source": str(folder), "weights": "dummy"}
    return {**copy.deepcopy(CONFIG), "store": str(tmp_path / "store"), "models": [model]}


def manifest_of(config):
    return build_manifest(load_study(copy.deepcopy(config)))


def test_it_needs_nothing_but_config_json(config, folder):
    (folder / "README.md").write_text("not read")
    identity = model_identity(parse(str(folder), "model"), {}, dummy=True)
    assert list(identity["files"]) == ["config.json"] and identity["weights"] == "dummy"
    with pytest.raises(UserError, match="weights: dummy"):
        model_identity(parse(str(folder), "model"), {})
    # the same folder with its own weights would be another model
    (folder / "model.safetensors").write_bytes(b"")
    assert model_identity(parse(str(folder), "model"), {}, dummy=True) == identity
    assert key(model_identity(parse(str(folder), "model"), {})) != key(identity)


def test_nothing_is_quantized_or_calibrated_and_quality_is_not_measured(config):
    config["schemes"] = ["bf16", "gptq-int4"]
    manifest = manifest_of(config)
    assert "calibration" not in config and not any(entry["quantized"] for entry in manifest["checkpoints"])
    stages = {point["stage"] for point in manifest["points"]}
    assert {"load", "latency", "throughput", "serving", "gemm"} <= stages and not stages & set(dummy.QUALITY)
    skips = {(skip["scheme"], skip["stage"]): skip["reason"] for skip in manifest["skips"]}
    asked = ("accuracy", "perplexity", "fidelity")
    assert skips == {(s, stage): "not measured: dummy weights" for s in config["schemes"] for stage in asked}
    # one folder in the store, but a key for each variant: they are of different sizes
    checkpoints = manifest["checkpoints"]
    assert len({entry["key"] for entry in checkpoints}) == 2
    jobs = build_jobs(manifest, Store(config["store"]))["measure_engine"]
    assert len({job["checkpoint_path"] for job in jobs.values()}) == 1
    assert all(job["engine_args"]["load_format"] == "dummy" for job in jobs.values())
    bf16, quantized = (memory.predicted(ARCHITECTURE, manifest["schemes"][s], manifest["study"]["engine"], manifest["gpus"]["cpu"])
                       for s in config["schemes"])  # fmt: skip
    assert quantized["weight_bytes"] < bf16["weight_bytes"]


def test_what_a_dummy_model_cannot_have_is_refused(config, folder):
    config["models"][0]["prequantized"] = [{"scheme": "bf16", "source": "x"}]
    with pytest.raises(UserError, match=r"models\[0\].prequantized.*takes no checkpoint"):
        load_study(config)
    del config["models"][0]["prequantized"]
    (folder / "config.json").write_text(json.dumps({n: v for n, v in ARCHITECTURE.items() if n != "vocab_size"}))
    with pytest.raises(UserError, match="vocab_size"):
        load_study(config)


def test_a_schemes_format_becomes_what_a_checkpoint_would_say():
    schemes = load_schemes(ROOT / "config" / "schemes")
    assert dummy.engine_arguments(schemes["bf16"]) == {"load_format": "dummy"}
    methods = {
        name: dummy.engine_arguments(schemes[name])["hf_overrides"]["quantization_config"]["quant_method"]
        for name in ("awq-int4", "awq-int4-native", "gptq-int4-native", "prequantized-fp8-block")
    }
    assert list(methods.values()) == ["compressed-tensors", "awq", "gptq", "fp8"]
    # of a scheme that has overrides of its own, they stay
    own = schemes["torchao-int8-dynamic"]["engine_args"]["hf_overrides"]
    assert dummy.engine_arguments(schemes["torchao-int8-dynamic"])["hf_overrides"] == own


def test_staging_makes_up_a_vocabulary_of_the_same_size(config, folder, tmp_path):
    (folder / "model.safetensors").write_bytes(b"not copied")
    store, model = Store(tmp_path / "store"), load_study(config).models["made-up"]
    job = {
        "kind": "model",
        "name": "made-up",
        "source": str(folder),
        "path": str(folder),
        "hub": None,
        "weights": "dummy",
    }
    _, staged = stage(job | {"identity": model["identity"]}, store)
    assert {path.name for path in staged.glob("*.*") if path.name != "quantbench.json"} == {
        "config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    # 320 ids, without beginning and end
    assert read_token_ids(staged) == [0, *range(3, 320)]


def test_a_real_engine_runs_any_scheme_of_it(ask_engine, folder):
    dummy.write_tokenizer(folder)
    scheme = load_schemes(ROOT / "config" / "schemes")["awq-int4"]
    settings = {"kv_cache_memory_bytes": 16777216, "enforce_eager": True, "max_num_seqs": 4, "dtype": "bfloat16"}
    said = ask_engine(
        """
from quantbench.engine.session import Session
session = Session(given["folder"], given["engine_args"])
row = session.load_record()
batch = session.latency(2, 8, 4, {"least": 2, "most": 2, "relative_ci": 1, "confidence": 0.95})
answer = {"kernels": row["kernels"], "memory": row["memory"], "weights": row["weight_bytes"], "batch": batch}
""",
        {"folder": str(folder), "engine_args": settings | dummy.engine_arguments(scheme)},
    )
    computes = {entry["layer_kind"]: entry["computes"] for entry in said["kernels"]}
    assert computes["qkv_proj"] in ("w4a16", "w4a8") and computes["lm_head"] == "bf16"
    assert len(said["batch"]) == 2 and said["weights"] == 0
    # what the study set aside, rounded down to whole blocks
    assert 0.9 * 16777216 < said["memory"]["kv_cache_bytes"] <= 16777216
    assert said["memory"]["peak_bytes"] > 16777216 and said["memory"]["graph_bytes"] is None
