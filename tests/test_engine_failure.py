"""engine_failure.py: messages that vLLM 0.32.0 really printed, and crashes that only sound like them."""

import pytest
from quantbench.engine_failure import LONGEST_REASON, classify_failure, last_lines

ERROR = "ERROR 11-20 21:19:01 [multiproc_executor.py:953]"
SPACE = " "
FP8_BLOCK = f"""\
(Worker pid=14389) {ERROR}     raise ValueError(
(Worker pid=14389) {ERROR} ValueError: Failed to find a kernel that can implement \
the ScaledMM linear layer. Reasons:{SPACE}
(Worker pid=14389) {ERROR} CPUFp8W8A8BlockScaledMMKernel requires AMX tile \
support (Sapphire Rapids or newer)..
(Worker pid=14389) {ERROR} CPUFp8BlockScaledMMKernel requires AMX tile support \
(Sapphire Rapids or newer)..
(EngineCore pid=14383) INFO 11-20 21:19:01 [multiproc_executor.py:479] [shutdown] Executor: waiting for worker exit
(EngineCore pid=14383) ERROR 11-20 21:19:01 [core.py:1510] Exception: WorkerProc initialization failed due to an \
exception in a background process. See stack trace for root cause.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""

CASES = [
    (
        FP8_BLOCK,
        "unsupported",
        "Failed to find a kernel that can implement the ScaledMM linear layer. Reasons: CPUFp8W8A8BlockScaledMMKernel"
        " requires AMX tile support (Sapphire Rapids or newer). CPUFp8BlockScaledMMKernel requires AMX tile support"
        " (Sapphire Rapids or newer).",
    ),
    (
        f"(Worker pid=1) {ERROR} ValueError: Forced NVFP4 kernel MarlinNvFp4LinearKernel is not supported: Marlin FP4"
        " not available",
        "unsupported",
        "Forced NVFP4 kernel MarlinNvFp4LinearKernel is not supported: Marlin FP4 not available",
    ),
    (
        f"(Worker pid=1) {ERROR} ValueError: Failed to find a kernel that can implement the MXFP4 linear layer."
        f" Reasons: \n(Worker pid=1) {ERROR} ",
        "unsupported",
        "Failed to find a kernel that can implement the MXFP4 linear layer.",
    ),
    (
        f"(Worker pid=1) {ERROR} RuntimeError: _C::quantize() expected at most 0 argument(s) but received 4"
        " argument(s). Declaration: _C::quantize() -> ()",
        "unsupported",
        "_C::quantize() expected at most 0 argument(s) but received 4 argument(s). Declaration: _C::quantize() -> ()",
    ),
    (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, gguf quantization is currently not supported in cpu. [type=value_error, input_value=A(())]",
        "unsupported",
        "gguf quantization is currently not supported in cpu.",
    ),
    (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
        "out_of_memory",
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
    ),
    (
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is"
        " needed, which is larger than the available KV cache memory (3.10 GiB).",
        "out_of_memory",
        "To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is"
        " needed, which is larger than the available KV cache memory (3.10 GiB).",
    ),
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "out_of_memory",
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
    ),
    # the message of an exception that was caught in process
    (
        "Failed to find a kernel that can implement the NVFP4 linear layer. Reasons: \nA requires B.",
        "unsupported",
        "Failed to find a kernel that can implement the NVFP4 linear layer. Reasons: A requires B.",
    ),
]


@pytest.mark.parametrize(("text", "status", "reason"), CASES)
def test_what_vllm_says_cannot_work_is_a_result(text, status, reason):
    assert classify_failure(text) == (status, reason)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "INFO 11-20 21:18:42 [cpu.py:1] Sleep mode is not supported on CPU",
        "WARNING: out of memory is near\nTraceback (most recent call last):\nKeyError: 'layers.0'",
        "OSError: [Errno 98] Address already in use",
        "TypeError: '<' not supported between instances of 'NoneType' and 'int'",
        "ValueError: the flag --foo is not supported",
        # another process holds the memory: it may be gone at the next try
        "ValueError: Free memory on device (3.1/80.0 GiB) on startup is less than desired GPU memory utilization.",
        "ValueError: Available memory on node 0 (8/10 GiB) on kv cache allocation is less than requested memory for kv",
        # an operator called in a wrong way, not one without code
        "RuntimeError: _C::f() expected at most 1 argument(s) but received 4 argument(s). Declaration: _C::f(a) -> ()",
        "RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore': -9}",
    ],
)
def test_a_crash_stays_a_crash(text):
    assert classify_failure(text) is None


def test_a_reason_has_an_end():
    status, reason = classify_failure("ValueError: No available memory for the cache blocks. " + "x" * 5000)
    assert status == "out_of_memory" and len(reason) == LONGEST_REASON


def test_last_lines_skip_the_empty_ones():
    assert last_lines("a\n\nb\n \nc\n", 2) == "b\nc"
