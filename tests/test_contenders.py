"""Contenders: the shipped list, which device refuses what, and what a checkpoint of each layout says."""

import json
from pathlib import Path

import pytest
import yaml
from quantbench.contenders import SCHEMA, checkpoint_config, contender_identity, device_refusal, load_contenders
from quantbench.errors import UserError

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "config" / "kernels.yaml"
CONTENDERS = load_contenders(KERNELS)
CPU = {"environment": "engine-cpu", "compute_capability": None}


def gpu(capability):
    return {"environment": "engine-cuda", "compute_capability": capability}


def ways(computes):
    """{(layout, how)} of the contenders that compute this."""
    return {
        (spec["layout"], "engine" if spec["through"] == "engine" else str(next(iter(spec["through"].values()))))
        for spec in CONTENDERS.values()
        if spec["computes"] == computes
    }


def test_the_kernels_that_published_tables_quote_are_listed():
    for computes in ("fp32", "fp16", "bf16"):
        assert ("plain", "torch_mm") in ways(computes)
    assert ("plain", "torch_mm_tf32") in ways("tf32")
    for layout in ("gptq", "awq"):
        assert {(layout, kernel) for kernel in ("engine", "marlin", "machete", "exllama")} <= ways("w4a16")
    assert ("awq", "awq_gemm") in ways("w4a16") and ("torchao", "torchao_int4_weight_only") in ways("w4a16")
    assert {("gptq", "marlin"), ("torchao", "torchao_int8_weight_only")} <= ways("w8a16-int8")
    assert ("compressed-tensors", "marlin") in ways("w4a16-fp4") & ways("w4a16-mxfp4") & ways("w8a16-fp8")
    assert ways("w4a4-fp4") and ways("w4a4-mxfp4") and ways("w4a8") and ways("w4a8-fp8")
    assert ("compressed-tensors", "transformer_engine_delayed") in ways("w8a8-fp8")


@pytest.mark.parametrize(
    ("type", "strategy"),
    [("int", "tensor"), ("int", "channel"), ("float", "tensor"), ("float", "channel"), ("float", "block")],
)
def test_eight_bit_kernels_are_there_with_and_without_quantizing_the_activations(type, strategy):
    found = {
        spec["includes_quantization"]
        for spec in CONTENDERS.values()
        if spec["format"] and spec["computes"].startswith("w8a8")
        if (spec["format"]["weights"]["type"], spec["format"]["weights"]["strategy"]) == (type, strategy)
    }
    assert found == {True, False}


def test_a_device_refuses_what_it_cannot_run_and_says_why():
    def refusal(name, entry):
        return device_refusal(CONTENDERS[name], entry)

    assert refusal("dense-bf16", CPU) is None and refusal("dense-bf16", gpu("7.0")) is None
    assert refusal("w4a16-gptq-machete", gpu("9.0")) is None
    assert refusal("w4a16-gptq-machete", gpu("8.0")) == ("this kernel needs compute capability 9.0, the device has 8.0")
    # 10.0 is more than 9.0, although "10.0" < "9.0".
    assert refusal("w4a16-gptq-machete", gpu("10.0")) == (
        "this kernel exists up to compute capability 9.0, the device has 10.0"
    )
    assert refusal("nvfp4", gpu("12.0")) is None
    assert refusal("w4a16-gptq-marlin", CPU) == "this kernel runs on CUDA devices only"
    assert refusal("w4a8-int8-cpu", gpu("9.0")) == "this kernel runs on a CPU only"
    # A lower bound is CUDA's, so it does not keep a CPU from a kernel for any device.
    assert refusal("int8-token-channel", CPU) is None


def test_the_identity_is_all_but_the_description():
    spec = CONTENDERS["w4a16-gptq-marlin"]
    identity = contender_identity(spec)
    assert identity == {name: spec[name] for name in spec if name != "description"}
    assert contender_identity(spec | {"description": "other words"}) == identity
    assert {"dtype", "device", "capability"} <= identity.keys(), "defaults are part of it"
    assert CONTENDERS["w8a16-fp8-marlin"]["capability"] == {"least": "7.5", "most": None}
    # Two contenders of one identity would be measured once and shown twice.
    texts = [json.dumps(contender_identity(spec), sort_keys=True) for spec in CONTENDERS.values()]
    assert len(texts) == len(set(texts))


def test_checkpoint_configs_are_what_each_layouts_tool_writes():
    assert checkpoint_config(CONTENDERS["w4a16-gptq"]) == {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False,
        "checkpoint_format": "gptq",
    }  # fmt: skip
    awq = checkpoint_config(CONTENDERS["w4a16-awq-marlin"])
    assert (awq["quant_method"], awq["bits"], awq["group_size"], awq["zero_point"]) == ("awq", 4, 128, True)
    packed = checkpoint_config(CONTENDERS["w4a8-fp8"])
    assert packed["format"] == packed["config_groups"]["group_0"]["format"] == "pack-quantized"
    assert packed["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert checkpoint_config(CONTENDERS["int8-tensor"])["format"] == "int-quantized"
    assert checkpoint_config(CONTENDERS["dense-fp16"]) is None
    assert checkpoint_config(CONTENDERS["w4a16-torchao"]) is None


def changed(tmp_path, name, **changes):
    """kernels.yaml with one changed entry; `None` takes the key away."""
    entries = yaml.safe_load(KERNELS.read_text())
    entries[name] = {key: value for key, value in (entries[name] | changes).items() if value != "away"}
    path = tmp_path / "kernels.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dense-fp16", {"device": "cuba"}, "dense-fp16.device: 'cuba'.*did you mean 'cuda'"),
        ("dense-fp16", {"computed": "fp16"}, "unknown key 'computed'; did you mean 'computes'"),
        ("dense-fp16", {"computes": "away"}, "dense-fp16: key 'computes' is missing"),
        ("dense-fp16", {"layout": "gptq"}, "dense-fp16: layout gptq does not go with format null"),
        ("w4a16-gptq", {"layout": "awq"}, "w4a16-gptq: layout awq holds 4-bit integer weights, with zero points"),
        ("w4a16-awq", {"layout": "gptq"}, "w4a16-awq: layout gptq holds 4 or 8-bit integer weights, symmetric"),
        ("w4a16-gptq", {"includes_quantization": True}, "includes_quantization must be null for w4a16"),
        ("int8-tensor", {"includes_quantization": None}, "includes_quantization must be true or false for w8a8-int8"),
        ("int8-tensor", {"includes_quantization": False}, "an engine's layer quantizes the activations itself"),
        ("w4a16-torchao", {"through": "engine"}, "layout torchao is read by operators only"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message):
        load_contenders(changed(tmp_path, name, **changes))


def test_every_property_of_the_schema_is_described():
    schema = json.loads(SCHEMA.read_text())
    for properties in (schema["$defs"]["contender"]["properties"], schema["$defs"]["arguments"]["properties"]):
        assert [name for name, entry in properties.items() if not entry.get("description")] == []
