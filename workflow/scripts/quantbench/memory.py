"""What fits where: a device's memory by arithmetic, before anything runs, and beside it what the engine took. Pure.

    room for keys and values = utilization x device memory - weights - activations of the largest step - graphs and context

Each device of a tensor-parallel group holds its part of weights and cache. The engine refuses a model whose longest sequence
does not fit the cache (vllm/v1/core/kv_cache_utils.py, check_enough_kv_cache_memory), so that is what "fits" means here.
"""

from quantbench import display
from quantbench.engine_args import engine_arguments
from quantbench.guess import size_of

# vLLM's gpu_memory_utilization where nothing is said (vllm/config/cache.py): 0.92 in 0.32, 0.9 in 0.25.1.
UTILIZATION = 0.9
# vLLM's max_num_batched_tokens where nothing is said: of an offline engine on a device of 70 GiB and more
# (engine/arg_utils.py, get_batch_defaults). The trial run that sizes the cache takes a step of so many tokens.
STEP_TOKENS = 16384
# CUDA context, libraries' workspaces and, unless eager, graphs: a rule of thumb, held against the engine's figures below.
CONTEXT_BYTES, GRAPH_BYTES = 1.0e9, 1.0e9
COLUMNS = (
    "weight_bytes", "kv_cache_bytes", "kv_cache_tokens", "graph_bytes", "peak_bytes", "device_bytes", "device_used_bytes",
)  # fmt: skip


def predicted(config, scheme, engine, gpu_entry):
    """{"weight_bytes", "kv_cache_tokens", "longest", "fits"} of one device, by arithmetic.

    config: the model's config.json; scheme: a scheme; engine: the study's engine settings; gpu_entry: of the data sheets.
    kv_cache_tokens  tokens that the cache has room for; null where the device's memory or the architecture is not known
    longest          tokens of the longest sequence that the engine has to hold
    fits             whether it does; null where kv_cache_tokens is
    """
    arguments = engine_arguments(engine, scheme)
    text, size = config.get("text_config") or config, size_of(config, scheme)
    devices = arguments.get("tensor_parallel_size", 1)
    longest = arguments.get("max_model_len") or text.get("max_position_embeddings")
    found = {"weight_bytes": size.bytes / devices, "kv_cache_tokens": None, "longest": longest, "fits": None}
    if not size.kv_bytes_per_token:
        return found | {"weight_bytes": None}
    # A key/value head that has to serve several devices is held by each.
    shared = min(devices, text.get("num_key_value_heads") or text["num_attention_heads"])
    kv_bytes = size.kv_bytes_per_token / shared
    if arguments.get("kv_cache_dtype", "auto").startswith("fp8"):
        kv_bytes /= 2
    room = arguments.get("kv_cache_memory_bytes")
    if room is None:
        if gpu_entry["memory_bytes"] is None:
            return found
        taken = found["weight_bytes"] + _step_bytes(text, arguments, devices) + CONTEXT_BYTES
        taken += 0 if arguments["enforce_eager"] else GRAPH_BYTES
        room = UTILIZATION * gpu_entry["memory_bytes"] - taken
    tokens = max(0, int(room / kv_bytes))
    return found | {"kv_cache_tokens": tokens, "fits": longest is None or tokens >= longest}


def _step_bytes(text, arguments, devices):
    """Activations of the largest step: two hidden states and the MLP's inner one, and logits in 32 bits before and after."""
    tokens = arguments.get("max_num_batched_tokens") or STEP_TOKENS
    inner = 3 * text["intermediate_size"] / devices
    return 2 * tokens * (2 * text["hidden_size"] + inner) + 2 * 4 * arguments["max_num_seqs"] * text["vocab_size"]


def rows(manifest, keys, point, record):
    """Rows of table `memory` of one stored `load` point: what the engine took, beside what was predicted."""
    model, scheme = (manifest[part][point[name]] for part, name in (("models", "model"), ("schemes", "scheme")))
    expected = predicted(model["config"], scheme, manifest["study"]["engine"], manifest["gpus"][point["gpu"]])
    row = keys | {f"predicted_{name}": expected[name] for name in ("weight_bytes", "kv_cache_tokens", "fits")}
    row |= {"longest_tokens": expected["longest"]}
    if record["status"] != "ok":
        return [row]
    loaded = record["rows"][0]
    # Records from before the engine was asked have the weights' files and the cache's tokens.
    measured = {name: loaded.get(name) for name in COLUMNS} | {
        name: value for name, value in (loaded.get("memory") or {}).items() if value is not None
    }
    return [row | {name: measured[name] or None for name in COLUMNS}]


def fit_lines(manifest):
    """Lines for a terminal on what fits where, before anything runs: one per device, and one per variant that does not fit."""
    lines = []
    for gpu, entry in manifest["gpus"].items():
        found = {
            f"{model}/{scheme}": predicted(
                manifest["models"][model]["config"], recipe, manifest["study"]["engine"], entry
            )
            for model in manifest["models"]
            for scheme, recipe in manifest["schemes"].items()
        }
        known = {name: one for name, one in found.items() if one["fits"] is not None}
        fitting = {name: one for name, one in known.items() if one["fits"]}
        if fitting:
            name = min(fitting, key=lambda name: fitting[name]["kv_cache_tokens"])
            least = fitting[name]
            lines.append(
                f"  {gpu}: {len(fitting)} of {len(found)} variants fit; the least room has {name}: "
                f"{display.amount(least['weight_bytes'], 'B')} of weights, about {_rounded(least['kv_cache_tokens'])} cached tokens"
            )
        lines += [
            f"  {gpu}: {name} does not fit: {display.amount(one['weight_bytes'], 'B')} of weights leave room for "
            f"{_rounded(one['kv_cache_tokens'])} cached tokens, and the longest sequence has {one['longest']:,}"
            for name, one in known.items()
            if not one["fits"]
        ]
    return ["", "memory, before it is tried:", *lines] if lines else []


def _rounded(tokens):
    """815579 -> "816,000": as far as arithmetic without the device goes."""
    return f"{int(float(f'{tokens:.3g}')):,}"
