"""vLLM's own chooser of kernels, asked about devices that are not there: it agrees with the rules."""

import pytest
from quantbench.environments import pins
from quantbench.kernel_verdict import FLOATS
from quantbench.schemes import compressed_tensors_config
from quantbench.support import support
from quantbench.support_table import combine
from support_cases import EXPECTED, FORMATS, ROOT, cuda

# Everything in one process: a device after another, and the real one before and after, which must not notice.
ASK = """
from quantbench.engine.chooser import Chooser
from quantbench.engine.pretend import optional_packages
def ask(capability, names):
    with Chooser(capability, optional_packages(given["pins"])) as chooser:
        return {name: chooser.ask(*given["asked"][name]) for name in names}
from vllm.platforms import current_platform
before = ask(None, given["on_cpu"]), type(current_platform).__name__
answers = {capability: ask(capability, names) for capability, names in given["names"].items()}
after = ask(None, given["on_cpu"]), type(current_platform).__name__
answer = {**answers, "cpu": after[0], "restored": before == after}
"""
# Whether Humming takes MXFP4 is asked of Humming itself, which is not installed on a CPU.
NOT_ASKED = [("mxfp4", "9.0")]
ON_CPU = ["bf16", "w4a16", "int8", "fp8-block", "nvfp4", "mxfp4", "int8-online", "no-such"]
TURING = ["bf16", "bf16-as-fp16", "int8-as-fp16", "w4a16-as-fp16"]


@pytest.fixture(scope="module")
def answers(ask_engine):
    """{capability, or "cpu": {name: the chooser's answer}}, and whether asking left the process as it was."""
    asked = {
        name: (format and compressed_tensors_config(format, ["Linear"], []), "bfloat16")
        for name, (format, _) in FORMATS.items()
    }
    asked |= {f"{name}-as-fp16": (asked[name][0], "float16") for name in ("bf16", "int8", "w4a16")}
    asked |= {
        "int8-online": (None, "bfloat16", "int8_per_channel_weight_only"),
        "fp8-online": (None, "bfloat16", "fp8"),
    }
    asked["no-such"] = (None, "bfloat16", "no_such_method")
    names = {"7.0": ["bf16", "bf16-as-fp16", "int8-as-fp16", "w4a16-as-fp16"], "7.5": TURING}
    for name, capability, _, _ in EXPECTED:
        if (name, capability) not in NOT_ASKED:
            names.setdefault(capability, []).append(name)
    for capability in ("10.0", "12.0"):
        names[capability].append("int8")
    names["9.0"] += ["int8-online", "fp8-online"]
    cuda_pins = pins(ROOT / "envs" / "engine-cuda.txt")
    return ask_engine(ASK, given={"pins": cuda_pins, "asked": asked, "names": names, "on_cpu": ON_CPU})


@pytest.mark.engine
def test_the_chooser_agrees_with_the_rules_on_devices_that_are_not_there(answers):
    differing = []
    for name, capability, level, kernel in EXPECTED:
        if (name, capability) in NOT_ASKED:
            continue
        format, promised = FORMATS[name]
        answer = answers[capability][name]
        row = combine(promised, support(format, {}, promised, cuda(capability), "bfloat16"), answer, None)
        if row["mismatch"] or answer["kernel"] != kernel or row["level"] != level:
            differing.append((name, capability, level, kernel, answer["kernel"], answer["reason"], row["mismatch"]))
    assert not differing


@pytest.mark.engine
def test_asking_leaves_the_process_as_it_was(answers):
    assert answers["restored"]


@pytest.mark.engine
def test_refusals_are_vllms_own_words(answers):
    machete = answers["8.0"]["w4a16"]["refusals"]["MacheteLinearKernel"]
    assert "capability" in machete and "90" in machete
    # What would be taken without the first choice is told, too.
    assert "next in line" in answers["9.0"]["w4a16"]["refusals"].values()
    assert "8.0" in answers["7.5"]["bf16"]["reason"] and "float16" in answers["7.5"]["bf16"]["reason"]
    assert "75" in answers["7.0"]["int8-as-fp16"]["reason"] and "70" in answers["7.0"]["int8-as-fp16"]["reason"]
    assert answers["7.5"]["int8-as-fp16"]["kernel"] == "CutlassInt8ScaledMMLinearKernel"
    assert answers["7.5"]["w4a16-as-fp16"]["kernel"] == "MarlinLinearKernel"
    assert "no_such_method" in answers["cpu"]["no-such"]["reason"]


@pytest.mark.engine
def test_the_chooser_takes_int8_on_blackwell_which_the_rules_know_to_fail(answers):
    for capability in ("10.0", "12.0"):
        assert answers[capability]["int8"]["kernel"] == "CutlassInt8ScaledMMLinearKernel"


@pytest.mark.engine
def test_the_cpu_answers_for_itself(answers):
    cpu = answers["cpu"]
    assert cpu["bf16"]["kernel"].startswith("UnquantizedLinearMethod") and cpu["bf16"]["computes"] == "bf16"
    assert cpu["int8"]["kernel"] == "CPUInt8ScaledMMLinearKernel"
    # Computes W4A8 where the CPU has AMX, W4A16 elsewhere.
    assert cpu["w4a16"]["kernel"] == "CPUWNA16LinearKernel" and cpu["w4a16"]["computes"] in ("w4a8", "w4a16")
    assert cpu["nvfp4"]["kernel"] is None and "NVFP4" in cpu["nvfp4"]["reason"]
    assert cpu["mxfp4"]["kernel"] is None and "MXFP4" in cpu["mxfp4"]["reason"]
    # Taken without a word, and left in 16 bits.
    for device in ("cpu", "9.0"):
        assert answers[device]["int8-online"]["computes"] in FLOATS
    assert answers["9.0"]["fp8-online"]["kernel"] == "CutlassFP8ScaledMMLinearKernel"
