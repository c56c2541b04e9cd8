"""What one engine start has decided costs no second one."""

from quantbench.kernel_verdict import known_failure

PROMISES = {"computes": "w8a16-int8", "ignore": []}


def loaded(**kernel):
    entry = {"layer_kind": "o_proj", "count": 4, "kernel": "K", "computes": "bf16", "quantized": False} | kernel
    return {"status": "ok", "reason": None, "rows": [{"kernels": [entry]}]}


def test_a_refused_variant_stays_refused_with_the_engines_reason():
    load = {"status": "unsupported", "reason": "Failed to find a kernel", "rows": []}
    assert known_failure(load, PROMISES, "bfloat16") == ("unsupported", "Failed to find a kernel")


def test_a_variant_that_ran_unquantized_is_invalid():
    status, reason = known_failure(loaded(), PROMISES, "bfloat16")
    assert status == "invalid" and "silently ran unquantized: o_proj" in reason


def test_what_is_not_decided_is_measured():
    assert known_failure(None, PROMISES, "bfloat16") is None
    assert known_failure(loaded(computes="w8a16-int8", quantized=True), PROMISES, "bfloat16") is None
    # computing something else than promised is labelled, not refused
    assert known_failure(loaded(computes="w8a8-int8", quantized=True), PROMISES, "bfloat16") is None
