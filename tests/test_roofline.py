"""The arithmetic of least times, by hand."""

import pytest
from quantbench.errors import UserError
from quantbench.roofline import (
    decode_floor_s,
    floor_s,
    gemm_bytes,
    gemm_flops,
    layer_shapes,
    rate_dtype,
    weight_bytes,
)

LLAMA_8B = {
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
    "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip


def shape(layer, config=LLAMA_8B, devices=1):
    return next((s["n"], s["k"], s["count"]) for s in layer_shapes(config, devices) if s["layer"] == layer)


def test_layers_of_llama_3_8b():
    assert shape("qkv_proj") == (6144, 4096, 32)  # (32 + 2 x 8) heads x 128
    assert shape("o_proj") == (4096, 4096, 32)
    assert shape("gate_up_proj") == (28672, 4096, 32)  # 2 x 14336
    assert shape("down_proj") == (4096, 14336, 32)
    assert shape("lm_head") == (128256, 4096, 1)
    # 32 (6144 + 4096 + 28672) 4096 + 32 x 4096 x 14336 + 128256 x 4096 = 7.50e9: 8.03e9 less the embeddings' 0.53e9
    parameters = sum(s["n"] * s["k"] * s["count"] for s in layer_shapes(LLAMA_8B))
    assert parameters == pytest.approx(8.03e9 - 0.525e9, rel=1e-3)


def test_layers_on_two_and_on_sixteen_devices():
    assert shape("qkv_proj", devices=2) == (3072, 4096, 32)
    assert shape("o_proj", devices=2) == (4096, 2048, 32)
    assert shape("down_proj", devices=2) == (4096, 7168, 32)
    # 16 devices, 8 key/value heads: two heads of queries, one key and one value head each: 4 x 128
    assert shape("qkv_proj", devices=16)[0] == 512


def test_defaults_of_a_config():
    # No grouped heads, no head_dim: 4 heads of 256 / 4 = 64, so qkv has 3 x 256 rows; 1000 words are padded to 1024.
    config = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
    config |= {"intermediate_size": 512, "vocab_size": 1000}
    assert shape("qkv_proj", config) == (768, 256, 2)
    assert shape("lm_head", config) == (1024, 256, 1)


def test_other_architectures_are_refused():
    with pytest.raises(UserError, match="num_local_experts"):
        layer_shapes({**LLAMA_8B, "num_local_experts": 8})
    with pytest.raises(UserError, match="intermediate_size"):
        layer_shapes({key: value for key, value in LLAMA_8B.items() if key != "intermediate_size"})
    with pytest.raises(UserError, match="3 devices"):
        layer_shapes(LLAMA_8B, 3)


def weights(**arguments):
    return {"weights": {"symmetric": True, **arguments}, "input_activations": None}


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (None, 256 * 512 * 2),
        # half a byte each, and a 2-byte scale for each 128: 65536 + 256 x 4 x 2
        (weights(num_bits=4, type="int", strategy="group", group_size=128), 65536 + 2048),
        # and half a byte of zero point for each 128: + 256 x 4 / 2
        (weights(num_bits=4, type="int", strategy="group", group_size=128, symmetric=False), 65536 + 2048 + 512),
        # a byte each, 4 bytes for each of 256 rows
        (weights(num_bits=8, type="int", strategy="channel"), 131072 + 1024),
        # a byte each, 4 bytes for each of 2 x 4 blocks
        (weights(num_bits=8, type="float", strategy="block", block_structure=[128, 128]), 131072 + 32),
        (weights(num_bits=8, type="float", strategy="tensor"), 131072 + 4),
        # half a byte each, a byte for each 16, 4 bytes in all
        (weights(num_bits=4, type="float", strategy="tensor_group", group_size=16), 65536 + 8192 + 4),
    ],
)
def test_weight_bytes_of_256_by_512(format, expected):
    assert weight_bytes(256, 512, format) == expected


def test_a_product_reads_weights_and_activations_and_writes_activations():
    # m=16, n=256, k=512 in bf16: 262144 of weights + 16 x 512 x 2 in + 16 x 256 x 2 out
    assert gemm_bytes(16, 256, 512, None) == 262144 + 16384 + 8192
    assert gemm_flops(16, 256, 512) == 2 * 16 * 256 * 512


def test_the_slower_of_bus_and_arithmetic():
    # 4.8e9 bytes at 4.8e12 /s: 1 ms; 989.4e9 operations at 989.4e12 /s: 1 ms
    assert floor_s(4.8e9, 0, 4.8e12, 989.4e12) == pytest.approx(1e-3)
    assert floor_s(0, 2 * 989.4e9, 4.8e12, 989.4e12) == pytest.approx(2e-3)
    assert floor_s(4.8e9, 2 * 989.4e9, 4.8e12, 989.4e12) == pytest.approx(2e-3)


def test_an_unknown_ceiling_gives_no_floor():
    assert floor_s(1, 1, None, 1.0) is None
    assert floor_s(1, 1, 1.0, None) is None


def test_the_rate_is_the_one_of_the_arithmetic_not_of_the_weights():
    assert rate_dtype("w4a16") == "bf16"
    assert rate_dtype("w4a8") == "int8"
    assert rate_dtype("w8a8-fp8") == "fp8"
    assert rate_dtype("emulated-w4a4-fp4") is None


def test_a_decode_step_of_llama_3_8b_on_an_h200():
    # 16 GB of bf16 weights and 0.5 GB of keys and values at 4.8 TB/s: 3.4375 ms
    assert decode_floor_s(16e9, 0.5e9, 4.8e12) == pytest.approx(3.4375e-3)
