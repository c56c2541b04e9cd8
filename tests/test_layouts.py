"""Native layouts: packing by the arithmetic on paper, and the same dequantized weights as compressed-tensors."""

import numpy as np
import pytest
from quantbench.quantize import layouts

N, K, GROUP = 16, 32, 8
BITS = 4


def weights(symmetric, bits=BITS):
    return {"num_bits": bits, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": symmetric}


def unpacked(packed, bits=BITS):
    """Independent of layouts.py: number by number, low bits first, along the last axis."""
    per = 32 // bits
    rows = packed.reshape(-1, packed.shape[-1]).astype(np.uint32)
    found = [[int(word) >> bits * i & 2**bits - 1 for word in row for i in range(per)] for row in rows]
    return np.array(found).reshape(*packed.shape[:-1], -1)


@pytest.fixture(params=[True, False], ids=["symmetric", "zero points"])
def checkpoint(request):
    """A layer as compressed-tensors lays it: unsigned numbers u = q + 8, weight = (u - zero) * scale."""
    random = np.random.default_rng(0)
    numbers = random.integers(0, 16, (N, K), dtype=np.uint8)
    zeros = np.full((N, K // GROUP), 8) if request.param else random.integers(1, 16, (N, K // GROUP))
    scales = random.standard_normal((N, K // GROUP)).astype(np.float32)
    parts = {"weight_packed": layouts.pack(numbers, BITS), "weight_scale": scales}
    if not request.param:
        parts["weight_zero_point"] = np.ascontiguousarray(layouts.pack(zeros.T.astype(np.uint8), BITS).T)
        assert parts["weight_zero_point"].shape == (N // 8, K // GROUP)
    dequantized = (numbers.astype(int) - np.repeat(zeros, GROUP, 1)) * np.repeat(scales, GROUP, 1)
    return request.param, parts, dequantized


def native(checkpoint, layout):
    symmetric, parts, _ = checkpoint
    found = {}
    for part, tensor in parts.items():
        found |= layouts.native_tensors(part, tensor, layout, weights(symmetric))
    return found


def test_packing_on_paper():
    # 1 + 2 * 16 + 3 * 256 + ... + 8 * 16^7
    assert layouts.pack(np.arange(1, 9, dtype=np.uint8)[None], 4).view(np.uint32)[0, 0] == 0x87654321
    assert layouts.pack(np.arange(8, dtype=np.uint8)[None], 4, layouts.AWQ_ORDER).view(np.uint32)[0, 0] == 0x75316420
    assert layouts.pack(np.array([[1, 2, 3, 255]], np.uint8), 8).view(np.uint32)[0, 0] == 0xFF030201
    numbers = np.random.default_rng(1).integers(0, 16, (3, 24), dtype=np.uint8)
    assert (layouts.unpack(layouts.pack(numbers, 4), 4) == numbers).all()


def test_gptq_layout_gives_the_same_weights(checkpoint):
    found = native(checkpoint, "gptq")
    assert {name: array.shape for name, array in found.items()} == {
        "qweight": (K // 8, N), "g_idx": (K,), "scales": (K // GROUP, N), "qzeros": (K // GROUP, N // 8),
    }  # fmt: skip
    numbers = unpacked(np.ascontiguousarray(found["qweight"].T)).T
    zeros = unpacked(found["qzeros"]) + 1
    groups = found["g_idx"]
    assert list(groups) == [k // GROUP for k in range(K)]
    assert ((numbers - zeros[groups]) * found["scales"][groups] == checkpoint[2].T).all()


def test_awq_layout_gives_the_same_weights(checkpoint):
    found = native(checkpoint, "awq")
    assert {name: array.shape for name, array in found.items()} == {
        "qweight": (K, N // 8), "scales": (K // GROUP, N), "qzeros": (K // GROUP, N // 8),
    }  # fmt: skip
    # vLLM's _REVERSE_AWQ_PACK_ORDER (quantization/auto_awq.py): where column 0, 1, ... of each eight lies
    reverse = [0, 4, 1, 5, 2, 6, 3, 7]

    def columns(packed):
        return unpacked(packed).reshape(len(packed), -1, 8)[..., reverse].reshape(len(packed), -1)

    numbers, zeros = columns(found["qweight"]), np.repeat(columns(found["qzeros"]), GROUP, 0)
    assert ((numbers - zeros) * np.repeat(found["scales"], GROUP, 0) == checkpoint[2].T).all()


def test_a_zero_point_of_zero_survives_gptqs_minus_one():
    # stored as 15, which GPTQ's readers turn back with + 1 modulo 16
    zeros = layouts.pack(np.zeros((1, 8), np.uint8), 4).T
    assert (unpacked(layouts.native_tensors("weight_zero_point", zeros, "gptq", weights(False))["qzeros"]) == 15).all()


def test_configs_are_what_vllm_reads():
    assert layouts.native_config("gptq", weights(True), ["lm_head"]) == {
        "quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False, "lm_head": False,
        "checkpoint_format": "gptq",
    }  # fmt: skip
    awq = layouts.native_config("awq", weights(True), ["lm_head"])
    assert awq["zero_point"] is True and awq["modules_to_not_convert"] == ["lm_head"] and awq["quant_method"] == "awq"
    assert layouts.native_config("awq", weights(True), ["lm_head", "re:.*down_proj"])["modules_to_not_convert"] == []
