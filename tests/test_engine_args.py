"""The engine's settings: which of them are part of a key, what a model does not allow, and kernels that are forced."""

import copy
import json

import pytest
from quantbench import engine_args
from quantbench.errors import UserError
from quantbench.jobs import build_jobs
from quantbench.kernel_verdict import refusal
from quantbench.manifest import build_manifest
from quantbench.schemes import load_schemes
from quantbench.store import Store
from quantbench.study import ROOT, SCHEMA, load_study
from workflow_study import CONFIG

SCHEMES = load_schemes(ROOT / "config" / "schemes")
FORCED = ("awq-int4-exllama", "awq-int4-marlin", "awq-int4-machete")
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
ENGINE = {"dtype": "bfloat16", "max_num_seqs": 256, "tensor_parallel_size": 1, "max_num_batched_tokens": None}
ENGINE |= {"enable_chunked_prefill": None, "enforce_eager": False, "kv_cache_dtype": None, "linear_backend": None}


@pytest.fixture
def config(tmp_path):
    return {**copy.deepcopy(CONFIG), "store": str(tmp_path / "store")}


def manifest_of(config):
    return build_manifest(load_study(copy.deepcopy(config)))


def test_a_setting_at_its_default_is_in_no_key():
    found = engine_args.engine_arguments(ENGINE, SCHEMES["bf16"])
    same = {"dtype": "bfloat16", "max_num_seqs": 256, "enforce_eager": False}
    assert found == same | {"enable_prefix_caching": False, "seed": 0}
    asked = {
        "tensor_parallel_size": 2,
        "kv_cache_dtype": "fp8",
        "enable_chunked_prefill": False,
        "linear_backend": "marlin",
    }
    assert engine_args.engine_arguments(ENGINE | asked, SCHEMES["bf16"]) == found | asked
    # a scheme's own argument wins
    own = engine_args.engine_arguments(ENGINE | asked, SCHEMES["awq-int4-exllama"])
    assert (own["linear_backend"], own["dtype"]) == ("exllama", "float16")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"tensor_parallel_size": 3}, "does not divide the 32 attention heads and 14336 MLP features"),
        # 14336 / 32 = 448 = 3.5 groups of 128, and 32 heads and 8 key/value heads divide
        ({"tensor_parallel_size": 32}, "leaves 448 input features of model.layers.0.mlp.down_proj to each device"),
        ({"max_num_batched_tokens": 128}, "less than engine.max_num_seqs, 256"),
        ({"max_num_batched_tokens": 1024, "enable_chunked_prefill": False}, "a prompt has to fit into a step"),
    ],
)
def test_what_a_model_does_not_allow_is_said_before_anything_starts(setting, said):
    schemes = {name: SCHEMES[name] for name in ("bf16", "gptq-int4")}
    faults = engine_args.setting_faults(ENGINE | setting, schemes, "llama", LLAMA, 4096)
    assert said in " ".join(faults)
    assert engine_args.setting_faults(ENGINE | {"tensor_parallel_size": 8}, schemes, "llama", LLAMA, 4096) == []


def test_a_study_is_held_to_it(config):
    config["engine"]["tensor_parallel_size"] = 3
    with pytest.raises(UserError, match="engine.tensor_parallel_size: 3 does not divide"):
        load_study(config)
    config["engine"] |= {"tensor_parallel_size": 1, "linear_backend": "marlyn"}
    with pytest.raises(UserError, match="'marlyn'.*'marlin'"):
        load_study(config)


def test_matrix_products_are_a_devices_part(config):
    whole, config["engine"]["tensor_parallel_size"] = manifest_of(config), 2
    halved = manifest_of(config)
    assert all(
        p["identity"]["engine_args"]["tensor_parallel_size"] == 2 for p in halved["points"] if p["stage"] == "load"
    )

    def sizes(manifest, layer):
        return {(p["identity"]["params"]["n"], p["identity"]["params"]["k"]) for p in manifest["points"]
                if p["stage"] == "gemm" and p["layer"] == layer}  # fmt: skip

    [(n, k)] = sizes(whole, "gate_up_proj")
    assert sizes(halved, "gate_up_proj") == {(n // 2, k)}


# --- forced kernels ---------------------------------------------------------------------------------------------------------


def test_forced_kernels_share_a_checkpoint_and_no_point(config):
    config |= {"schemes": ["bf16", "awq-int4-symmetric", *FORCED]}
    config["calibration"] = {"dataset": "arithmetic", "samples": 16}
    manifest = manifest_of(config)
    keys = {entry["scheme"]: entry["key"] for entry in manifest["checkpoints"]}
    assert len({keys[name] for name in ("awq-int4-symmetric", *FORCED)}) == 1
    points = {}
    for point in manifest["points"]:
        if point["scheme"] in FORCED and point.get("layer") != "lm_head":
            points.setdefault(point["key"], set()).add(point["scheme"])
    assert points and all(len(schemes) == 1 for schemes in points.values())
    # matrix products alone run the forced kernel, too, and count as the scheme's own
    forced = [
        p
        for p in manifest["points"]
        if p["stage"] == "gemm" and p["scheme"] == "awq-int4-marlin" and p["layer"] != "lm_head"
    ]
    assert {p["identity"]["contender"]["through"]["backend"] for p in forced} == {"marlin"}
    assert all(p["contender"] is None and p["identity"]["params"]["dtype"] == "float16" for p in forced)
    jobs = build_jobs(manifest, Store(config["store"]))["measure_engine"]
    assert jobs["cpu", "tiny", "awq-int4-exllama"]["expects"]["linear_backend"] == "exllama"
    assert "linear_backend" not in jobs["cpu", "tiny", "awq-int4-symmetric"]["expects"]


def test_a_backend_that_was_not_obeyed_is_told_from_the_kernels_that_ran():
    expects = {"computes": "w4a16", "ignore": ["lm_head"], "left": {"lm_head": 1}, "linear_backend": "exllama"}
    head = {
        "layer_kind": "lm_head",
        "count": 1,
        "kernel": "UnquantizedEmbeddingMethod",
        "computes": "fp16",
        "quantized": False,
    }
    ran = {
        "layer_kind": "qkv_proj",
        "count": 2,
        "kernel": "ExllamaLinearKernel",
        "computes": "w4a16",
        "quantized": True,
    }
    assert refusal(expects, [ran, head], "float16") is None
    other = ran | {"kernel": "MarlinLinearKernel"}
    assert refusal(expects, [other, head], "float16").startswith(
        "the kernels of exllama were asked for, but qkv_proj took Marlin"
    )


def test_a_device_without_the_forced_kernel_is_not_called_able():
    from quantbench.support_table import support_rows

    engine = ENGINE | {"linear_backend": None}
    manifest = {"study": {"engine": engine, "gpus": ["cpu"], "schemes": ["awq-int4-marlin"]}}
    manifest |= {
        "gpus": {"cpu": {"environment": "engine-cpu"}},
        "schemes": {"awq-int4-marlin": SCHEMES["awq-int4-marlin"]},
    }
    answer = {"kernel": "CPUWNA16LinearKernel", "computes": "w4a16", "refusals": {}, "reason": None}
    asked = [
        ({"gpu": "cpu", "scheme": "awq-int4-marlin"}, {"status": "ok", "reason": None, "run_id": "1", "rows": [answer]})
    ]
    [row] = support_rows(manifest, asked, [])
    assert row["level"] == "unsupported" and "takes CPUWNA16LinearKernel instead" in row["reason"]
    asked[0][1]["rows"] = [answer | {"kernel": "MarlinLinearKernel"}]
    assert support_rows(manifest, asked, [])[0]["level"] == "native"


def test_backends_are_told_as_vllm_tells_them(ask_engine):
    backends = ask_engine(
        "from vllm.model_executor.kernels.linear import _LINEAR_BACKEND_KERNEL_MAP as known\n"
        "answer = {backend: [kernel.__name__ for kernel in kernels] for backend, kernels in known.items()}"
    )
    allowed = json.loads(SCHEMA.read_text())["$defs"]["linear_backend"]["enum"]
    backends = {backend: kernels for backend, kernels in backends.items() if backend in allowed}
    for backend, kernels in backends.items():
        assert [kernel for kernel in kernels if not engine_args.is_of_backend(kernel, backend)] == [], backend
    # and none that vLLM has under other backends only, but where one name is the beginning of the other's
    every = {kernel for kernels in backends.values() for kernel in kernels}
    taken = {b: {k for k in every if engine_args.is_of_backend(k, b)} - set(kernels) for b, kernels in backends.items()}
    assert not {backend: kernels for backend, kernels in taken.items() if kernels}
    # the four that compute 4-bit weights, each taken for its own alone
    found = {name: [b for b in ("exllama", "marlin", "machete", "conch") if engine_args.is_of_backend(name, b)]
             for name in ("ExllamaLinearKernel", "MarlinLinearKernel", "MacheteLinearKernel", "ConchLinearKernel")}  # fmt: skip
    assert list(found.values()) == [["exllama"], ["marlin"], ["machete"], ["conch"]]


def test_the_chooser_is_asked_with_the_backend_forced(ask_engine):
    from quantbench.schemes import compressed_tensors_config

    symmetric, zeros = (SCHEMES[name]["format"] for name in ("awq-int4-exllama", "awq-int4"))
    asked = [[backend, dtype, compressed_tensors_config(format_, ["Linear"], [])] for backend, dtype, format_ in (
        (None, "float16", symmetric), ("exllama", "float16", symmetric), ("marlin", "float16", symmetric),
        ("exllama", "bfloat16", symmetric), ("exllama", "float16", zeros),
    )]  # fmt: skip
    answers = ask_engine(
        """
from quantbench.engine.chooser import Chooser
with Chooser("9.0", []) as chooser:
    answer = [chooser.ask(config, dtype, backend=backend) for backend, dtype, config in given]
""",
        asked,
    )
    assert [said["kernel"] for said in answers[:3]] == [
        "MacheteLinearKernel",
        "ExllamaLinearKernel",
        "MarlinLinearKernel",
    ]
    # why the three schemes are symmetric and in float16
    assert "float16" in answers[3]["reason"] and "Quant type" in answers[4]["reason"]
