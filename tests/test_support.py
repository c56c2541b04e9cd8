"""Which scheme runs on which device: the rules, and beside them the chooser's and the engine's answers."""

from itertools import pairwise

import pytest
from quantbench.gpus import load_gpus
from quantbench.support import LEVELS, RULES, below, rule_family, support
from quantbench.support_table import combine, kernels_of_load, mismatch, support_rows, support_text
from support_cases import CPU, EXPECTED, FORMATS, NVFP4, ROOT, SCHEMES, cuda, numbers, w_a

# --- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "capability", "level", "kernel"), EXPECTED)
def test_the_rules_know_level_and_kernel(name, capability, level, kernel):
    format, promised = FORMATS[name]
    found = support(format, {}, promised, cuda(capability), "bfloat16")
    assert (found.level, found.kernel) == (level, kernel)
    assert (found.reason is None) == (level == "native")


def test_a_reason_says_both_capabilities_and_what_happens_instead():
    found = support(*[FORMATS["fp8"][0], {}, "w8a8-fp8", cuda("8.0")])
    assert found.computes == "w8a16-fp8"
    assert found.reason == (
        "needs compute capability 8.9 for native FP8 arithmetic; the device has 8.0: weights stay FP8 and are widened "
        "to 16 bits (HummingFP8)"
    )


@pytest.mark.parametrize("capability", ["10.0", "12.0"])
def test_int8_is_refused_on_blackwell_although_the_chooser_takes_it(capability):
    found = support(FORMATS["int8"][0], {}, "w8a8-int8", cuda(capability))
    assert found.level == "unsupported"
    assert f"Int8 not supported on SM{capability.replace('.', '')}'" in found.reason


def test_nothing_runs_below_what_the_engine_is_built_for():
    for format, promised in FORMATS.values():
        found = support(format, {}, promised, cuda("7.0"))
        assert found.level == "unsupported" and "7.5" in found.reason and "7.0" in found.reason


def test_a_turing_device_has_no_bfloat16():
    refused = support(None, {}, "bf16", cuda("7.5"), "bfloat16")
    assert refused.level == "unsupported" and "8.0" in refused.reason and "float16" in refused.reason
    assert support(FORMATS["int8"][0], {}, "w8a8-int8", cuda("7.5"), "float16").level == "native"
    # The engine's own arguments say it as well.
    assert support(FORMATS["int8"][0], {"dtype": "bfloat16"}, "w8a8-int8", cuda("7.5")).level == "unsupported"


def test_the_baseline_in_another_type_is_not_what_it_promises():
    found = support(None, {}, "bf16", cuda("9.0"), "float16")
    assert (found.level, found.computes) == ("emulated", "fp16")


def test_a_cpu_has_no_rules_and_the_engine_is_asked():
    for format, promised in FORMATS.values():
        assert support(format, {}, promised, CPU).level == "unknown"


def test_online_quantization_follows_its_format_and_experts_hang_on_the_model():
    assert support(None, {"quantization": "fp8"}, "w8a8-fp8", cuda("8.0")).level == "emulated"
    assert support(None, {"quantization": "fp8_per_channel"}, "w8a8-fp8", cuda("9.0")).level == "native"
    experts = support(None, SCHEMES["int8-online"]["engine_args"], "w8a16-int8", cuda("9.0"))
    assert experts.level == "unknown" and "expert" in experts.reason
    assert support(None, {"quantization": "something"}, "w4a16", cuda("9.0")).level == "unknown"


def test_a_format_without_rules_is_unknown_and_not_guessed_at():
    three_bits = w_a(numbers(3, "int", "group", 128))
    assert rule_family(three_bits) is None
    assert support(three_bits, {}, "w3a16", cuda("9.0")).level == "unknown"
    assert (
        support(w_a(numbers(8, "int", "group", 128, symmetric=False)), {}, "w8a16-int8", cuda("9.0")).level == "unknown"
    )


def test_every_scheme_of_the_repository_has_an_answer_on_every_device():
    for entry in load_gpus(ROOT / "config" / "gpus.yaml").values():
        for scheme in SCHEMES.values():
            found = support(scheme["format"], scheme["engine_args"], scheme["computes"], entry, "bfloat16")
            assert found.level in LEVELS
            assert found.reason or found.level == "native"


def test_rules_rise_and_compare_numbers_not_text():
    assert below("9.0", "10.0") and below("8.6", "8.9") and not below("10.0", "9.0") and not below("9.0", "9.0")
    for rules in RULES.values():
        assert rules[0].least == "7.5"
        assert all(below(low.least, high.least) for low, high in pairwise(rules))


# --- the table -------------------------------------------------------------------------------------------------------


def chose(kernel, computes, reason=None):
    return {"kernel": kernel, "computes": computes, "refusals": {}, "reason": reason}


def ran(kernels, computes, verdicts, reason=None):
    return {"kernels": kernels, "computes": computes, "verdicts": verdicts, "reason": reason}


MACHETE = support(FORMATS["w4a16"][0], {}, "w4a16", cuda("9.0"))


def test_three_answers_that_agree_are_no_mismatch():
    row = combine("w4a16", MACHETE, chose("MacheteLinearKernel", "w4a16"),
                  ran(["MacheteLinearKernel"], ["w4a16"], ["as_promised"]))  # fmt: skip
    assert (row["level"], row["status"], row["mismatch"]) == ("native", "ok", None)
    assert row["engine_kernels"] == "MacheteLinearKernel"


def test_another_kernel_than_expected_is_shown():
    row = combine("w4a16", MACHETE, chose("MarlinLinearKernel", "w4a16"), None)
    assert row["level"] == "native"
    assert row["mismatch"] == "the rules: MacheteLinearKernel (w4a16); the chooser: MarlinLinearKernel (w4a16)"
    assert "the engine: MarlinLinearKernel" in mismatch(
        "w4a16", MACHETE, None, ran(["MarlinLinearKernel"], ["w4a16"], ["as_promised"])
    )


def test_what_ran_outweighs_what_was_expected():
    other = ran(["MacheteLinearKernel"], ["w4a8"], ["computes_other"])
    row = combine("w4a16", MACHETE, chose("MacheteLinearKernel", "w4a16"), other)
    assert row["level"] == "emulated" and "(w4a8)" in row["mismatch"]
    refused = combine("w4a16", MACHETE, chose("MacheteLinearKernel", "w4a16"), ran([], [], [], "no kernel"))
    assert (refused["level"], refused["status"], refused["reason"]) == ("unsupported", "unsupported", "no kernel")
    assert "the engine: unsupported" in refused["mismatch"]


def test_a_layer_left_in_16_bits_does_not_support_the_scheme():
    rule = support(None, SCHEMES["int8-online"]["engine_args"], "w8a16-int8", CPU)
    row = combine("w8a16-int8", rule, chose("UnquantizedLinearMethod (onednn_mm)", "bf16"), None)
    assert row["level"] == "unsupported" and "unquantized" in row["reason"]


def test_rules_that_refuse_what_the_chooser_takes_are_a_mismatch_and_win():
    rule = support(FORMATS["int8"][0], {}, "w8a8-int8", cuda("10.0"))
    row = combine("w8a8-int8", rule, chose("CutlassInt8ScaledMMLinearKernel", "w8a8-int8"), None)
    assert row["level"] == "unsupported" and row["reason"] == rule.reason
    assert row["mismatch"] == "the rules: unsupported; the chooser: CutlassInt8ScaledMMLinearKernel (w8a8-int8)"


def test_on_a_cpu_the_chooser_decides_and_contradicts_no_rule():
    rule = support(NVFP4, {}, "w4a4-fp4", CPU)
    row = combine("w4a4-fp4", rule, chose(None, None, "no kernel at all"), None)
    assert (row["level"], row["reason"], row["mismatch"]) == ("unsupported", "no kernel at all", None)
    rule = support(FORMATS["w4a16"][0], {}, "w4a16", CPU)
    assert combine("w4a16", rule, chose("CPUWNA16LinearKernel", "w4a8"), None)["level"] == "emulated"
    assert combine("w4a16", rule, None, None)["level"] == "unknown"


def test_a_kernel_that_does_not_tell_what_it_computes_leaves_the_rules_level():
    rule = support(FORMATS["fp8"][0], {}, "w8a8-fp8", cuda("8.0"))
    row = combine("w8a8-fp8", rule, chose("HummingFP8ScaledMMLinearKernel", None), None)
    assert (row["level"], row["mismatch"]) == ("emulated", None)


def test_a_kernel_that_claims_what_its_device_cannot_do_is_not_believed():
    rule = support(NVFP4, {}, "w4a4-fp4", cuda("9.0"))
    row = combine("w4a4-fp4", rule, chose("HummingNvFp4LinearKernel", "w4a4-fp4"), None)
    assert row["level"] == "emulated"
    assert row["mismatch"] == (
        "the rules: HummingNvFp4LinearKernel (emulated); the chooser: HummingNvFp4LinearKernel (w4a4-fp4)"
    )


def study(gpus):
    schemes = {"bf16": SCHEMES["bf16"], "gptq-int4": SCHEMES["gptq-int4"]}
    return {"study": {"engine": {"dtype": "bfloat16"}}, "gpus": gpus, "schemes": schemes}


def kernel_row(scheme, layer_kind, kernel, computes, verdict, **more):
    return {"run_id": "r", "status": "ok", "reason": None, "gpu": "h100", "scheme": scheme, "layer_kind": layer_kind,
            "kernel": kernel, "computes": computes, "verdict": verdict, **more}  # fmt: skip


def test_rows_put_the_three_answers_side_by_side():
    manifest = study({"h100": cuda("9.0"), "cpu": CPU})
    record = {"status": "ok", "run_id": "asked", "reason": None, "rows": [chose("MacheteLinearKernel", "w4a16")]}
    kernels = [
        # The output head is left alone by the scheme: not a kernel of it.
        kernel_row("gptq-int4", "lm_head", "UnquantizedEmbeddingMethod", "bf16", "as_promised"),
        kernel_row("gptq-int4", "qkv_proj", "MarlinLinearKernel", "w4a16", "as_promised"),
        kernel_row("gptq-int4", "down_proj", "MacheteLinearKernel", "w4a16", "as_promised"),
        # never started, so no engine's word
        {"status": "unsupported", "reason": "skipped", "gpu": "cpu", "scheme": "gptq-int4"},
    ]
    rows = support_rows(manifest, [({"gpu": "h100", "scheme": "gptq-int4"}, record)], kernels)
    assert [(row["gpu"], row["scheme"]) for row in rows] == [
        ("h100", "bf16"), ("h100", "gptq-int4"), ("cpu", "bf16"), ("cpu", "gptq-int4"),
    ]  # fmt: skip
    h100 = rows[1]
    assert (h100["run_id"], h100["level"]) == ("asked", "native")
    assert h100["engine_kernels"] == "MacheteLinearKernel, MarlinLinearKernel"
    assert (
        "the chooser: MacheteLinearKernel (w4a16); the engine: MacheteLinearKernel, MarlinLinearKernel"
        in h100["mismatch"]
    )
    assert rows[3]["engine_kernels"] is None and rows[3]["level"] == "unknown"


def test_the_output_heads_method_is_no_disagreement_about_linear_layers():
    kernels = [
        kernel_row("bf16", "lm_head", "UnquantizedEmbeddingMethod", "bf16", "as_promised"),
        kernel_row("bf16", "qkv_proj", "UnquantizedLinearMethod", "bf16", "as_promised"),
    ]
    record = {"status": "ok", "run_id": "asked", "reason": None, "rows": [chose("UnquantizedLinearMethod", "bf16")]}
    row = support_rows(study({"h100": cuda("9.0")}), [({"gpu": "h100", "scheme": "bf16"}, record)], kernels)[0]
    assert (row["engine_kernels"], row["level"], row["mismatch"]) == ("UnquantizedLinearMethod", "native", None)


def test_a_load_point_tells_its_kernels_before_there_are_tables():
    manifest = study({"h100": cuda("9.0")}) | {"models": {"tiny": {"config": {}}}}
    point = {"gpu": "h100", "model": "tiny", "scheme": "gptq-int4"}
    kernels = [
        {"layer_kind": "qkv_proj", "count": 2, "kernel": "MacheteLinearKernel", "computes": "w4a16", "quantized": True}
    ]
    stored = {"run_id": "r", "status": "ok", "reason": None, "rows": [{"kernels": kernels}]}
    [row] = kernels_of_load(manifest, point, stored)
    assert row["verdict"] == "as_promised"
    assert support_rows(manifest, [], [row])[1]["engine_kernels"] == "MacheteLinearKernel"
    refused = kernels_of_load(manifest, point, {"run_id": "r", "status": "unsupported", "reason": "no", "rows": []})
    assert support_rows(manifest, [], refused)[1]["reason"] == "no"


def test_the_terminal_text_is_aligned_and_marks_what_disagrees():
    manifest = study({"h100": cuda("9.0"), "a100": cuda("8.0")})
    record = {"status": "ok", "run_id": "r", "reason": None, "rows": [chose("MarlinLinearKernel", "w4a16")]}
    lines = support_text(support_rows(manifest, [({"gpu": "h100", "scheme": "gptq-int4"}, record)], [])).splitlines()
    assert lines[1].split() == ["bf16", "gptq-int4"]
    assert lines[2].split() == ["h100", "native", "native*"]
    assert lines[1].index("gptq-int4") == lines[2].index("native*") == lines[3].rindex("native")
    assert any(line.startswith("  h100 gptq-int4: the rules: MacheteLinearKernel") for line in lines)
