"""The engine's settings: what a study says under `engine`, what a scheme adds, and whether a model allows it. Pure.

A setting at its default is no part of an identity, so a new one here leaves older points as they are. Speculative decoding
is off: nothing turns it on. A scheme's own arguments win over the study's.
"""

from quantbench.model_fit import linear_layers, quantized_layers

DEFAULTS = {"tensor_parallel_size": 1}

# Layers whose input features are divided among devices (vLLM's RowParallelLinear); of the others it is the outputs.
ROW_PARALLEL = ("self_attn.o_proj", "mlp.down_proj")


def engine_arguments(engine, scheme):
    """vLLM's engine arguments of a scheme under a study's settings, in vLLM's names, and what makes points comparable."""
    arguments = {name: value for name, value in engine.items() if value is not None and value != DEFAULTS.get(name)}
    # The same prompt twice would measure the cache.
    return arguments | {"enable_prefix_caching": False, "seed": 0, **scheme["engine_args"]}


def dtype_of(engine, scheme):
    """bfloat16 or float16: what a scheme's engine computes in where nothing is quantized."""
    return scheme["engine_args"].get("dtype") or engine["dtype"]


def forced_backend(engine, scheme):
    """The kernel family that a scheme's linear layers are forced to (vLLM's `linear_backend`), or None: vLLM chooses."""
    return scheme["engine_args"].get("linear_backend") or engine.get("linear_backend")


# Which of FlashInfer's kernels are of which of its backends, by parts of their names.
FLASHINFER = {
    "flashinfer_cutlass": ("fp8scaledmm", "deepgemm", "cutlass", "infermxfp4"),
    "flashinfer_cutedsl": ("cutedsl",),
    "flashinfer_trtllm": ("trtllm",),
    "flashinfer_cudnn": ("cudnn",),
    "flashinfer_b12x": ("b12x",),
}


def is_of_backend(kernel, backend):
    """Whether a kernel's class is of a backend, by its name: vLLM's own table is _LINEAR_BACKEND_KERNEL_MAP, and a test holds
    this to it."""
    name = kernel.lower()
    if backend in FLASHINFER:
        return name.startswith("flashinfer") and any(part in name for part in FLASHINFER[backend])
    return backend.replace("_", "") in name and not name.startswith(("flashinfer", "torchao"))


def setting_faults(engine, schemes, model, config, context):
    """Sentences on settings that a model does not allow, for vLLM would say so after the model is loaded, or not at all.

    schemes: {name: scheme}; model: its name; config: its config.json; context: tokens of the longest sequence, or None
    """
    faults, devices = [], engine["tensor_parallel_size"]
    least = engine["max_num_batched_tokens"]
    if least is not None and least < engine["max_num_seqs"]:
        faults.append(
            f"engine.max_num_batched_tokens: {least} is less than engine.max_num_seqs, {engine['max_num_seqs']}: each "
            "sequence needs a token of a step"
        )
    if least is not None and engine["enable_chunked_prefill"] is False and context and least < context:
        faults.append(
            f"engine.max_num_batched_tokens: {least} is less than the context of model {model!r}, {context}, and "
            "engine.enable_chunked_prefill is false: a prompt has to fit into a step"
        )
    return faults + (_division_faults(devices, schemes, model, config) if devices > 1 else [])


def _division_faults(devices, schemes, model, config):
    """What does not divide among devices: heads and features (vLLM's ParallelConfig), and groups of a divided layer."""
    text, place = config.get("text_config") or config, f"engine.tensor_parallel_size: {devices}"
    counts = {"attention heads": text.get("num_attention_heads"), "MLP features": text.get("intermediate_size")}
    odd = [f"{count} {name}" for name, count in counts.items() if count and count % devices]
    kv_heads = text.get("num_key_value_heads")
    if kv_heads and kv_heads % devices and devices % kv_heads:
        odd.append(f"{kv_heads} key/value heads")
    if odd:
        return [f"{place} does not divide the {' and '.join(odd)} of model {model!r}"]
    faults = []
    for name, scheme in schemes.items():
        size = ((scheme["format"] or {}).get("weights") or {}).get("group_size")
        layers = quantized_layers(scheme, config) if size and linear_layers(config) else {}
        parts = {layer: k // devices for layer, (_, k) in layers.items() if layer.endswith(ROW_PARALLEL)}
        cut = next(((layer, part) for layer, part in parts.items() if part % size), None)
        if cut:
            faults.append(
                f"{place} leaves {cut[1]} input features of {cut[0]} to each device, and groups of {size} ({name}) do not "
                f"divide them; model {model!r} takes fewer devices, or the scheme smaller groups"
            )
    return faults
