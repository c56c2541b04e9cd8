"""The report explains a 4-bit scheme that is slow for the sake of a forced kernel, from the kernels that ran."""

from types import SimpleNamespace

import polars as pl
from quantbench import forced
from quantbench.schemes import load_schemes
from quantbench.study import ROOT

SCHEMES = load_schemes(ROOT / "config" / "schemes")
NAMES = ["bf16", "awq-int4-symmetric", "awq-int4-exllama"]
KERNELS = {"bf16": "UnquantizedLinearMethod", NAMES[1]: "MacheteLinearKernel", NAMES[2]: "ExllamaLinearKernel"}


def context(seconds, engine=None):
    """A study of one device; seconds: {scheme: {batch size: seconds of a batch}}"""
    rows = [
        {"gpu": "h200", "model": "llama", "scheme": scheme, "start": 1, "batch_size": batch, "input_tokens": 512,
         "output_tokens": 128, "elapsed_s": elapsed * factor, "status": "ok"}
        for scheme, batches in seconds.items() for batch, elapsed in batches.items() for factor in (0.999, 1.0, 1.001)
    ]  # fmt: skip
    kernels = [
        {"gpu": "h200", "model": "llama", "scheme": s, "kernel": k, "expected": SCHEMES[s]["computes"], "status": "ok"}
        for s, k in KERNELS.items()
    ]
    tables = {"latency": pl.DataFrame(rows), "kernels": pl.DataFrame(kernels)}
    return SimpleNamespace(
        study={"gpus": ["h200"], "schemes": NAMES, "engine": {"dtype": "float16"} | (engine or {})},
        models=["llama"],
        manifest={"schemes": {name: SCHEMES[name] for name in NAMES}},
        baseline="bf16",
        confidence=0.95,
        ok=tables.get,
    )


def test_the_trap_is_explained_by_the_kernel():
    # alone, ExLlama has half of Machete's speed and still beats bf16; at batch 64 it has a quarter, and loses
    seconds = {"bf16": {1: 3.0, 64: 4.0}, NAMES[1]: {1: 1.0, 64: 2.0}, NAMES[2]: {1: 2.0, 64: 8.0}}
    [said] = forced.sentences(context(seconds))
    assert "ExllamaLinearKernel is forced where vLLM takes MacheteLinearKernel (awq-int4-symmetric)" in said
    assert "0.50×" in said and "0.25×" in said
    assert said.endswith(
        "at batch 64 (latency) it is slower than bf16, and awq-int4-symmetric is faster: the kernel is why, not the format."
    )


def test_a_kernel_that_costs_nothing_is_blamed_for_nothing():
    seconds = {"bf16": {1: 3.0}, NAMES[1]: {1: 1.0}, NAMES[2]: {1: 1.0}}
    [said] = forced.sentences(context(seconds))
    assert "1.00×" in said and "slower" not in said


def test_a_kernel_that_was_not_taken_is_not_called_forced(monkeypatch):
    monkeypatch.setitem(KERNELS, NAMES[2], "MacheteLinearKernel")
    [said] = forced.sentences(context({"bf16": {1: 3.0}}))
    assert said.endswith("the kernels of exllama were asked for, MacheteLinearKernel ran: it is not measured.")


def test_nothing_forced_or_nothing_to_stand_beside_says_nothing():
    free = context({"bf16": {1: 3.0}})
    free.study["schemes"] = NAMES[:2]
    assert forced.sentences(free) == []
    # where the whole study is forced, no scheme shows vLLM's own choice
    assert forced.sentences(context({"bf16": {1: 3.0}}, {"linear_backend": "exllama"})) == []
