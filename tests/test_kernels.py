"""The kernel report and its verdict, on layers built by hand: both ways a scheme is quietly not what it says."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from quantbench.engine.kernels import KernelReporter, describe_layer, report_kernels
from quantbench.kernel_verdict import promised_for, verdict

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"


class LinearBase:
    """A layer as vLLM makes it: a quantization method, perhaps a scheme, perhaps a flag that a kernel left behind."""

    def __init__(self, **attributes):
        self.params_dtype = "torch.bfloat16"
        self.__dict__.update(attributes)


class QKVParallelLinear(LinearBase):
    pass


class VocabParallelEmbedding:
    quant_method = None


class ParallelLMHead(VocabParallelEmbedding):
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def instance(name, **attributes):
    """An object of a class of this name."""
    thing = type(name, (), {})()
    thing.__dict__.update(attributes)
    return thing


def wna16(kernel="CPUWNA16LinearKernel", bits=4, act_type="torch.bfloat16", **flags):
    config = SimpleNamespace(weight_type=SimpleNamespace(size_bits=bits), act_type=act_type)
    scheme = instance("CompressedTensorsWNA16", kernel=instance(kernel, config=config))
    return LinearBase(quant_method=instance("CompressedTensorsLinearMethod"), scheme=scheme, **flags)


def with_kernel(kernel, attribute="kernel", **scheme):
    holder = instance("CompressedTensorsScheme", **{attribute: instance(kernel)}, **scheme)
    return LinearBase(quant_method=instance("CompressedTensorsLinearMethod"), scheme=holder)


def unquantized(**attributes):
    return LinearBase(quant_method=instance("UnquantizedLinearMethod", _gemm_impl=print), **attributes)


class Model:
    def __init__(self, **modules):
        self.modules = modules

    def named_modules(self):
        return self.modules.items()


# --- trap 1: the kernel called WNA16 computes W4A8 on a CPU with AMX --------------------------------------------------


def test_a_w4a16_kernel_with_the_w4a8_flag_computes_w4a8():
    described = describe_layer(wna16(use_w4a8=True))
    assert described == {"kernel": "CPUWNA16LinearKernel", "computes": "w4a8", "quantized": True}
    assert verdict("w4a16", described["computes"], described["quantized"]) == "computes_other"


def test_a_w4a16_kernel_without_the_flag_keeps_the_promise():
    described = describe_layer(wna16(use_w4a8=False))
    assert described["computes"] == "w4a16"
    assert verdict("w4a16", described["computes"], described["quantized"]) == "as_promised"


# --- trap 2: a scheme that asks for quantization whose layers are unquantized -----------------------------------------


def test_a_quantized_scheme_on_unquantized_layers_is_found_out():
    [group] = report_kernels(Model(**{"model.layers.0.mlp.down_proj": unquantized()}))
    assert group["quantized"] is False and group["computes"] == "bf16"
    assert verdict("w8a16-int8", group["computes"], group["quantized"]) == "unquantized"
    assert verdict("bf16", group["computes"], group["quantized"]) == "as_promised"
    # float16 was asked for, bfloat16 ran
    assert verdict("fp16", group["computes"], group["quantized"]) == "computes_other"


# --- the report -------------------------------------------------------------------------------------------------------


def test_layers_are_grouped_by_kind_and_kernel():
    weight = SimpleNamespace(dtype="torch.bfloat16")
    head = ParallelLMHead(quant_method=instance("UnquantizedEmbeddingMethod"), weight=weight)
    modules = {"model.embed_tokens": VocabParallelEmbedding(), "model.norm": object(), "lm_head": head}
    for index in range(2):
        modules[f"model.layers.{index}.self_attn.qkv_proj"] = wna16()
        modules[f"model.layers.{index}.mlp.down_proj"] = wna16()
    # One block's down_proj was left alone: a group of its own.
    modules["model.layers.2.mlp.down_proj"] = unquantized()
    report = {(row["layer_kind"], row["quantized"]): row for row in report_kernels(Model(**modules))}
    assert {key: row["count"] for key, row in report.items()} == {
        ("lm_head", False): 1,
        ("qkv_proj", True): 2,
        ("down_proj", True): 2,
        ("down_proj", False): 1,
    }
    assert report["lm_head", False]["computes"] == "bf16"
    assert json.loads(json.dumps(list(report.values()))) == list(report.values())


def test_the_cpu_path_of_an_unquantized_layer_is_told():
    handler, ops = None, SimpleNamespace()
    layer = unquantized(cpu_linear=lambda x, weight, bias: ops.onednn_mm(handler, x, bias))
    assert describe_layer(layer)["kernel"] == "UnquantizedLinearMethod (onednn_mm)"


@pytest.mark.parametrize(
    ("layer", "computes"),
    [
        (wna16("MacheteLinearKernel"), "w4a16"),
        (wna16("MarlinLinearKernel", bits=8), "w8a16-int8"),
        (wna16("MarlinLinearKernel", act_type="torch.int8"), "w4a8"),
        (wna16("MarlinLinearKernel", bits=8, act_type="torch.int8"), "w8a8-int8"),
        (wna16("CutlassW4A8LinearKernel", act_type="torch.float8_e4m3fn"), "w4a8-fp8"),
        (wna16("Dynamic4bitLinearKernel"), "w4a8"),
        (with_kernel("CutlassInt8ScaledMMLinearKernel"), "w8a8-int8"),
        (with_kernel("CutlassFP8ScaledMMLinearKernel", "fp8_linear"), "w8a8-fp8"),
        (with_kernel("CPUFp8BlockScaledMMKernel", "fp8_linear"), "w8a16-fp8"),
        (with_kernel("CPUFp8W8A8BlockScaledMMKernel", "fp8_linear"), "w8a8-fp8"),
        (with_kernel("MarlinFP8ScaledMMLinearKernel", "fp8_linear"), "w8a16-fp8"),
        (with_kernel("DeepGemmFp8BlockScaledMMKernel", "fp8_linear"), "w8a8-fp8"),
        (with_kernel("FlashInferFp8DeepGEMMDynamicBlockScaledKernel", "fp8_linear"), "w8a8-fp8"),
        (with_kernel("FlashInferCutlassNvFp4LinearKernel", use_a16=False), "w4a4-fp4"),
        (with_kernel("FlashInferCutlassNvFp4LinearKernel", use_a16=True), "w4a16-fp4"),
        (with_kernel("MarlinNvFp4LinearKernel", use_a16=False), "w4a16-fp4"),
        (with_kernel("EmulationNvFp4LinearKernel", use_a16=False), "emulated-w4a4-fp4"),
        (with_kernel("MarlinMxFp4LinearKernel"), "w4a16-mxfp4"),
        (with_kernel("MarlinMxfp8LinearKernel"), "w8a16-mxfp8"),
        (with_kernel("FlashInferCutlassMxfp8LinearKernel"), "w8a8-mxfp8"),
        (with_kernel("SomethingNewKernel"), None),
    ],
)
def test_what_a_kernel_computes(layer, computes):
    assert describe_layer(layer)["computes"] == computes


def test_a_kernel_below_a_wrapping_method_is_found():
    inner = instance("CompressedTensorsLinearMethod", scheme=wna16().scheme)
    inner.scheme = type("W", (type("BaseScheme", (), {}),), {})()
    inner.scheme.kernel = instance("CutlassInt8ScaledMMLinearKernel")
    layer = LinearBase(quant_method=instance("CompressedTensorsLinearTransformMethod", quant_method=inner))
    assert describe_layer(layer)["kernel"] == "CutlassInt8ScaledMMLinearKernel"


def test_a_method_without_a_kernel_is_named_and_not_guessed():
    described = describe_layer(LinearBase(quant_method=instance("NewLinearMethod")))
    assert described == {"kernel": "NewLinearMethod", "computes": None, "quantized": True}
    assert verdict("w4a16", None, True) is None


@pytest.mark.parametrize(
    ("held", "rounds", "computes"),
    [
        ("Int8Tensor", None, "w8a16-int8"),
        ("Int8Tensor", "kwargs", "w8a8-int8"),
        ("Float8Tensor", "kwargs", "w8a8-fp8"),
        ("Int4TilePackedTo4dTensor", None, "w4a16"),
        ("AffineQuantizedTensor", None, None),
    ],
)
def test_torchao_is_told_by_the_tensor_that_holds_the_weight(held, rounds, computes):
    weight = instance(held, act_quant_kwargs=rounds)
    found = describe_layer(LinearBase(quant_method=instance("TorchAOLinearMethod"), weight=weight))
    assert found == {"kernel": f"TorchAOLinearMethod ({held})", "computes": computes, "quantized": True}


def test_the_worker_extension_reports_its_model():
    worker = KernelReporter()
    worker.model_runner = SimpleNamespace(model=Model(o_proj=unquantized()))
    assert [row["layer_kind"] for row in worker.report_kernels()] == ["o_proj"]
    worker.model_runner = SimpleNamespace(get_model=lambda: Model(qkv_proj=unquantized()))
    assert [row["layer_kind"] for row in worker.report_kernels()] == ["qkv_proj"]


# --- promises ---------------------------------------------------------------------------------------------------------


def test_ignored_layers_are_promised_in_their_own_type():
    scheme = {"computes": "w4a16", "ignore": ["lm_head", "re:.*down.*"]}
    assert promised_for(scheme, "lm_head") == "bf16"
    assert promised_for(scheme, "down_proj") == "bf16"
    assert promised_for(scheme, "qkv_proj") == "w4a16"
    assert promised_for({"computes": "w4a16", "ignore": []}, "lm_head") == "w4a16"
    # The toolkit knows q_proj, k_proj and v_proj; the engine serves them as one.
    assert promised_for({"computes": "w4a16", "ignore": ["re:.*[qkv]_proj"]}, "qkv_proj") == "bf16"


# --- with vLLM --------------------------------------------------------------------------------------------------------

# The load points of tests/test_workflow.py report what runs quantized and what is left in 16 bits on purpose.
ENGINE_CHECK = """
import os
from transformers import LlamaConfig
config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=32, max_position_embeddings=128, dtype="bfloat16",
                     architectures=["LlamaForCausalLM"])
config.save_pretrained("model")
from vllm import LLM
llm = LLM("model", load_format="dummy", skip_tokenizer_init=True, enforce_eager=True, kv_cache_memory_bytes=8 << 20,
          dtype="bfloat16", max_model_len=64, quantization="int8_per_channel_weight_only",
          worker_extension_cls="quantbench.engine.kernels.KernelReporter")
answer = llm.collective_rpc("report_kernels")[0]
"""


@pytest.mark.engine
def test_an_engine_that_silently_ran_unquantized_is_caught(ask_engine):
    report = {row["layer_kind"]: row for row in ask_engine(ENGINE_CHECK)}
    assert {kind: row["count"] for kind, row in report.items()} == {
        "qkv_proj": 2, "o_proj": 2, "gate_up_proj": 2, "down_proj": 2, "lm_head": 1,
    }  # fmt: skip
    # Seen with vLLM 0.32: "int8_per_channel_weight_only" quantizes experts alone, so a dense model stays as it is, and
    # nothing says so.
    assert all(row["computes"] == "bf16" and not row["quantized"] for row in report.values())
    row = report["down_proj"]
    assert verdict("w8a16-int8", row["computes"], row["quantized"]) == "unquantized"
