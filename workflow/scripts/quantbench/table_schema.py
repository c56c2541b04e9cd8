"""Every column of every table: type, unit, meaning. docs/tables.md says the same to people; a test holds them together.

Types are str, int, float, bool; every column may be null, which means "not measured" or "does not apply".
"""

from typing import NamedTuple


class Column(NamedTuple):
    """`type` is str, int, float or bool; `unit` is None for what has none."""

    type: str
    unit: str | None
    meaning: str


# --- columns that several tables share ------------------------------------------------------------------------------

RUN = {"run_id": Column("str", None, "process that measured the row; see table runs; null for what was never started")}
STATUS = {
    "status": Column("str", None, "ok, unsupported, out_of_memory, timeout or invalid"),
    "reason": Column("str", None, "why the status is not ok"),
}
GPU = {"gpu": Column("str", None, "type of device, a name of config/gpus.yaml")}
MODEL = {"model": Column("str", None, "model, as the study names it")}
SCHEME = {"scheme": Column("str", None, "number format and the way to reach it, a name of config/schemes")}
KEYS = RUN | STATUS | GPU | MODEL | SCHEME
START = {
    "start": Column(
        "int", None, "which start of the engine or server: 2 is the baseline's second (noise_floor), else 1"
    )
}
EMULATED = {
    "emulated": Column(
        "bool",
        None,
        "whether the device has no kernel for the scheme and its numbers were computed without one (emulate)",
    )
}
REPEAT = {"repeat": Column("int", None, "repeats of one point count from 0")}
ELAPSED = {"elapsed_s": Column("float", "s", "from handing the whole batch to the engine until its last token")}
LOAD = {
    "batch_size": Column("int", "sequences", "sequences handed to the engine at once"),
    "input_tokens": Column("int", "tokens", "prompt length of each sequence; null for a workload"),
    "output_tokens": Column("int", "tokens", "tokens generated for each sequence; null for a workload"),
}
ASKED = {
    "burstiness": Column(
        "float", None, "shape of the gamma distribution of the gaps; 1 is Poisson; null without a rate"
    ),
    "workload": Column("str", None, "requests of different lengths: their name; null where all ask for the same"),
    "input_tokens_asked": Column("int", "tokens", "prompt length asked for; null for a workload"),
    "output_tokens_asked": Column("int", "tokens", "output length asked for; null for a workload"),
}
DATASET = {"dataset": Column("str", None, "data set, as the study names it")}

SCHEMA = {
    "runs": RUN
    | {"stage": Column("str", None, "kind of process: which of the measuring scripts it was")}
    | GPU
    | {
        "device_name": Column("str", None, "what the device calls itself"),
        "device_uuid": Column("str", None, "identifier of the very device"),
        "driver": Column("str", None, "version of the device's driver"),
        "clocks": Column("str", None, "clocks when the process started"),
        "power_limit_w": Column("float", "W", "power limit when the process started"),
        "versions": Column("str", None, "installed packages and their versions, a JSON object"),
        "commit": Column("str", None, "commit of the workflow; +changed: its files differed from it"),
        "started_at": Column("str", None, "start of the process, ISO 8601, UTC"),
        "engine_args": Column("str", None, "arguments the engine was started with, a JSON object"),
        "engine_start_s": Column("float", "s", "time until the engine was ready; null when none was started"),
        "host": Column("str", None, "name of the machine"),
        "log": Column("str", None, "log file of the process"),
    },
    "starts": RUN
    | {"stage": Column("str", None, "measure_engine or measure_serving: an engine, or a server around one")}
    | GPU
    | {
        "model": Column("str", None, "model, as the study names it"),
        "scheme": Column("str", None, "number format and the way to reach it, a name of config/schemes"),
        "phase": Column(
            "str",
            None,
            "ready: the whole start; of it weights and initialize; of that compile and graphs (their capture)",
        ),
        "elapsed_s": Column("float", "s", "what it took; the phases as vLLM's log says"),
    },
    "gpus": RUN
    | STATUS
    | GPU
    | {
        "device_name": Column("str", None, "what the device calls itself"),
        "capability": Column("str", None, "CUDA compute capability, major.minor"),
        "memory_bytes": Column("int", "B", "memory of the device"),
        "l2_bytes": Column("int", "B", "last cache: L2 of a GPU, L3 of a CPU"),
        "driver": Column("str", None, "version of the device's driver"),
        "cuda_version": Column("str", None, "CUDA version that torch was built for"),
        "sm_clock_hz": Column("float", "Hz", "clock of the cores while 16-bit products ran"),
        "max_sm_clock_hz": Column("float", "Hz", "highest clock of the cores"),
        "memory_clock_hz": Column("float", "Hz", "clock of the memory while 16-bit products ran"),
        "temperature_c": Column("float", "°C", "temperature while 16-bit products ran"),
        "power_w": Column("float", "W", "power drawn while 16-bit products ran"),
        "throttle_reasons": Column("str", None, "what held the clocks down while 16-bit products ran"),
        "power_limit_w": Column("float", "W", "power limit when it was probed"),
        "ecc": Column("bool", None, "whether memory errors are corrected, which costs bandwidth on some devices"),
        "other_processes": Column("int", None, "processes of others on the device when it was probed"),
        "threads": Column("int", None, "threads that the probe used; CPU only"),
        "isa": Column("str", None, "instruction sets that matrix kernels choose by; CPU only"),
        "datasheet_bandwidth_bytes_per_s": Column("float", "B/s", "memory bandwidth by the data sheet"),
        "measured_bandwidth_bytes_per_s": Column("float", "B/s", "memory bandwidth reached by the probe"),
        "dtype": Column("str", None, "number format of the two rates that follow"),
        "datasheet_flops_per_s": Column("float", "1/s", "dense matrix operations per second by the data sheet"),
        "measured_flops_per_s": Column("float", "1/s", "dense matrix operations per second reached by the probe"),
    },
    "support": RUN
    | STATUS
    | GPU
    | SCHEME
    | {
        "level": Column("str", None, "native, emulated (other arithmetic than the scheme promises) or unsupported"),
        "rule_level": Column("str", None, "the same by the rules on compute capability; unknown where they have none"),
        "rule_kernel": Column("str", None, "kernel class that the rules expect"),
        "rule_reason": Column("str", None, "why the rules say so"),
        "chooser_kernel": Column("str", None, "kernel class that the engine's own chooser picks for this device"),
        "chooser_computes": Column("str", None, "what that kernel computes"),
        "chooser_reason": Column("str", None, "why the chooser picks none, in its own words"),
        "engine_kernels": Column("str", None, "kernel classes that the engine really ran, where it ran"),
        "engine_computes": Column("str", None, "what those compute"),
        "mismatch": Column("str", None, "where rules, chooser and engine disagree"),
    },
    "checkpoints": STATUS
    | MODEL
    | SCHEME
    | {
        "description": Column("str", None, "the scheme in a sentence"),
        "checkpoint_key": Column("str", None, "key of the weights in the store"),
        "spared": Column("str", None, "linear layers that spare leaves in 16 bits, as measured; null without spare"),
        "calibration_key": Column("str", None, "key of the calibration data; null for a scheme that takes none"),
        "calibration": Column("str", None, "what it was calibrated on: the calibration's name, or its data sets"),
        "calibration_rows": Column("int", None, "rows of calibration text"),
        "calibration_tokens": Column("int", "tokens", "tokens of all these rows"),
        "calibration_sha256": Column("str", None, "digest of these very token ids"),
        "bytes": Column("int", "B", "size of the safetensors files"),
        "parameters": Column("int", None, "weights, counted before packing"),
        "bits_per_weight": Column("float", "bit", "of the quantized layers, with scales and zeros; of all if none is"),
        "quantize_s": Column("float", "s", "time of quantizing; null for weights that were not quantized"),
        "peak_memory_bytes": Column("int", "B", "most host memory that quantizing took"),
        "peak_device_memory_bytes": Column("int", "B", "most memory of a GPU that quantizing took; null without one"),
    },
    "layers": RUN
    | STATUS
    | MODEL
    | SCHEME
    | {
        "texts": Column("str", None, "calibration whose held-out texts gave the inputs; null: weights alone"),
        "layer": Column("str", None, "quantized linear layer, as the model names it"),
        "n": Column("int", None, "output features"),
        "k": Column("int", None, "input features"),
        "weight_sqnr_db": Column("float", "dB", "the weights' squares over the squares of their rounding errors"),
        "output_sqnr_db": Column(
            "float", "dB", "the same of the layer's outputs, its inputs rounded as the scheme does"
        ),
        "tokens": Column("int", "tokens", "inputs that the outputs were compared on"),
    },
    "kernels": KEYS
    | START
    | EMULATED
    | {
        "stage": Column("str", None, "who said so: engine (offline points) or server (serving points)"),
        "layer_kind": Column("str", None, "kind of linear layer, such as qkv_proj"),
        "layers": Column("int", None, "layers of this kind that ran this kernel"),
        "kernel": Column("str", None, "class of the kernel that ran"),
        "computes": Column("str", None, "what the kernel computes: bf16, w8a8-int8, w4a16, ..."),
        "expected": Column("str", None, "what the scheme promises to compute in this layer"),
        "verdict": Column(
            "str", None, "as_promised, computes_other, unquantized, emulated; null for a kernel nobody has described"
        ),
    },
    "memory": KEYS
    | START
    | {
        "weight_bytes": Column(
            "int", "B", "what the weights take on one device; where the engine does not say, on disk"
        ),
        "predicted_weight_bytes": Column("float", "B", "the same by the model's sizes and the scheme's format"),
        "kv_cache_bytes": Column("int", "B", "cache of keys and values on one device"),
        "kv_cache_tokens": Column("int", "tokens", "tokens that the cache has room for"),
        "predicted_kv_cache_tokens": Column(
            "int", "tokens", "the same by the device's data sheet, before anything ran"
        ),
        "longest_tokens": Column("int", "tokens", "longest sequence that the engine has to hold"),
        "predicted_fits": Column("bool", None, "whether the longest sequence was expected to fit the cache"),
        "graph_bytes": Column("int", "B", "CUDA graphs on one device; null on a CPU"),
        "peak_bytes": Column("int", "B", "most held from the engine's start, on a CPU by the whole process"),
        "device_bytes": Column("int", "B", "memory of the device; null on a CPU"),
        "device_used_bytes": Column("int", "B", "of it taken once the engine is ready, by whomever"),
    },
    "gemm": KEYS
    | {
        "contender": Column("str", None, "kernel timed beside the schemes, a name of config/kernels.yaml; else null"),
        "product": Column("str", None, "linear, or relu_linear: a ReLU on the activations within the time"),
        "layer": Column("str", None, "layer of the model that has this shape"),
        "n": Column("int", None, "output features"),
        "k": Column("int", None, "input features"),
        "m": Column("int", "tokens", "rows of the activation"),
        "kernel": Column("str", None, "class of the kernel that was timed"),
        "computes": Column("str", None, "what that kernel computes"),
        "launch": Column("str", None, "graph (CUDA graph replay) or eager (launched call by call)"),
        "cache": Column("str", None, "cold (weights come from memory) or hot (they stay in the cache, where they fit)"),
    }
    | REPEAT
    | {
        "latency_s": Column("float", "s", "time of one product"),
        "relative_error": Column("float", None, "norm of the error over norm of the product of unrounded numbers"),
        "error_bound": Column("float", None, "the most that rounding can explain: what is off by more is not timed"),
        "includes_quantization": Column(
            "bool", None, "whether quantizing the activation is within the time; null where it stays in 16 bits"
        ),
        "sm_clock_hz": Column("float", "Hz", "clock of the cores at this repeat"),
        "memory_clock_hz": Column("float", "Hz", "clock of the memory at this repeat"),
        "temperature_c": Column("float", "°C", "temperature of the device at this repeat"),
        "power_w": Column("float", "W", "power that the device drew at this repeat"),
        "bytes": Column("float", "B", "bytes that have to cross the memory bus: weight, scales, zeros, activations"),
        "operations": Column("float", None, "multiplications and additions"),
        "floor_s": Column("float", "s", "least time, by the ceilings that the probe measured on this device"),
        "datasheet_floor_s": Column("float", "s", "least time, by the ceilings of the device's data sheet"),
    },
    "latency": KEYS
    | START
    | LOAD
    | REPEAT
    | ELAPSED
    | {
        "ttft_s": Column("float", "s", "time to the first token, the batch's last sequence: the prompts (prefill)"),
        "tpot_s": Column("float", "s", "time per output token after the first (decode); null where there is one only"),
    },
    "throughput": KEYS
    | START
    | LOAD
    | {"workload": ASKED["workload"]}
    | REPEAT
    | ELAPSED
    | {
        "total_input_tokens": Column("int", "tokens", "of all prompts together"),
        "total_output_tokens": Column("int", "tokens", "generated for all of them together"),
    },
    "serving": KEYS
    | START
    | {
        "load": Column("str", None, "rate (arrivals at random), concurrency (that many under way) or all_at_once"),
        "rate_per_s": Column("float", "1/s", "requests sent per second; null for other loads"),
        "concurrency": Column("int", "requests", "requests under way; null for other loads"),
    }
    | ASKED
    | {
        "request": Column("int", None, "requests of one load count from 0, in the order of their schedule"),
        "scheduled_s": Column("float", "s", "when it was due, since the load began; latencies count from here"),
        "sent_s": Column("float", "s", "when it was sent, since the load began"),
        "first_token_s": Column("float", "s", "when its first token came, since the load began"),
        "finished_s": Column("float", "s", "when its last token came, since the load began"),
        "input_tokens": Column("int", "tokens", "prompt tokens, counted by the server"),
        "output_tokens": Column("int", "tokens", "generated tokens, counted by the server"),
        "token_gaps": Column(
            "str", None, "times between its tokens, JSON {bin: count}; bin b begins at 1.01^b microseconds, 1 % wide"
        ),
        "error": Column("str", None, "what went wrong with this request"),
    },
    "search": KEYS
    | START
    | ASKED
    | {
        "slo": Column("str", None, "what a request may take, in seconds, and the share that has to; a JSON object"),
        "least_rate_per_s": Column("float", "1/s", "lowest rate of the search"),
        "most_rate_per_s": Column("float", "1/s", "highest rate of the search"),
        "probe": Column("int", None, "loads of one search count from 0, in the order in which they were sent"),
        "rate_per_s": Column("float", "1/s", "requests sent per second"),
        "probe_key": Column("str", None, "key of this load's point in the store, where its requests are"),
        "probe_status": Column("str", None, "status of that point; one that is not ok did not meet the SLO"),
        "probe_reason": Column("str", None, "why it is not ok"),
        "requests": Column("int", None, "requests of the load"),
        "within_share": Column("float", None, "share of the requests within the SLO"),
        "within_low": Column("float", None, "lower end of its 95 % interval (Wilson)"),
        "within_high": Column("float", None, "upper end of its 95 % interval (Wilson)"),
        "met": Column("bool", None, "whether the load met the SLO"),
        "goodput_per_s": Column("float", "1/s", "requests within the SLO per second of the load"),
        "output_tokens_per_s": Column("float", "tokens/s", "tokens generated per second of the load"),
    },
    "energy": KEYS
    | START
    | {
        "stage": Column("str", None, "latency, throughput or serving"),
        "point_key": Column("str", None, "key of the point in the store"),
        "batch_size": Column("int", "prompts", "of latency and throughput"),
        "load": Column("str", None, "of serving: as in the table serving"),
        "rate_per_s": Column("float", "1/s", "of serving by rate"),
        "concurrency": Column("int", "requests", "of serving by concurrency"),
        "burstiness": Column("float", None, "of serving by rate: as in the table serving"),
        "input_tokens_asked": Column("int", "tokens", "prompt length; null of a workload"),
        "output_tokens_asked": Column("int", "tokens", "output length; null of a workload"),
        "workload": Column("str", None, "requests of different lengths: the study's name for them"),
        "seconds": Column("float", "s", "length of the measured window"),
        "joules": Column("float", "J", "energy that the devices drew in it"),
        "mean_power_w": Column("float", "W", "that over its length"),
        "largest_gap_s": Column("float", "s", "longest time between two readings"),
        "valid": Column(
            "bool", None, "whether no gap is longer than 3 s and, of sampled power, the window no shorter than 2 s"
        ),
        "output_tokens": Column("int", "tokens", "generated in the window"),
        "joules_per_token": Column("float", "J", "energy per generated token; null where the window is not valid"),
    },
    "accuracy": KEYS
    | START
    | EMULATED
    | {
        "task": Column("str", None, "task of the LM Evaluation Harness, or the name of the study's own file"),
        "subtask": Column("str", None, "task within a group such as mmlu; null for a task by itself"),
    }
    | DATASET
    | {
        "shots": Column("int", None, "solved examples in the prompt"),
        "chat_template": Column("bool", None, "whether prompts went through the model's chat template"),
        "question": Column("int", None, "questions count from 0, on through the tasks of a group: pairs the schemes"),
        "filter": Column("str", None, "how the answer was read out of the text; of a multiple choice acc or acc_norm"),
        "correct": Column("bool", None, "whether the answer is the target"),
        "answer": Column("str", None, "answer read out of the text"),
        "target": Column("str", None, "right answer"),
        "sample": Column("str", None, "what was generated; of a multiple choice each log-likelihood, a JSON list"),
        "input_tokens": Column("int", "tokens", "prompt length of a generated answer"),
        "output_tokens": Column("int", "tokens", "length of a generated answer, its end included"),
        "cut_off": Column("bool", None, "whether the answer ran into the most tokens it may have"),
        "prompt_cut": Column("bool", None, "whether the prompt did not fit the context and lost its beginning"),
    },
    "perplexity": KEYS
    | START
    | EMULATED
    | DATASET
    | {
        "document": Column("int", None, "number of the document in its split, from 0: pairs the schemes"),
        "tokens": Column("int", "tokens", "tokens that were predicted"),
        "negative_log_likelihood": Column("float", "nat", "summed over those tokens"),
        "words": Column("int", None, "words of the document, as lm-eval's word perplexity counts them"),
        "bytes": Column("int", "B", "length of the document in UTF-8"),
    },
    "fidelity": KEYS
    | START
    | EMULATED
    | DATASET
    | {
        "top_k": Column("int", None, "most likely next tokens that were asked for at each position"),
        "document": Column("int", None, "number of the document in its split, from 0: pairs the schemes"),
        "tokens": Column("int", "tokens", "tokens that were predicted"),
        "negative_log_likelihood": Column("float", "nat", "summed over those tokens"),
        "kl_divergence": Column(
            "float", "nat", "of the baseline's next-token distribution to this one, summed; a bound from below"
        ),
        "largest_kl_divergence": Column("float", "nat", "the same at the one token where it is largest"),
        "unresolved_mass": Column("float", None, "the baseline's probability of tokens that not both listed, summed"),
        "top1_agreement": Column("int", "tokens", "tokens at which both find the same next token the most likely"),
    },
    "sensitivity": KEYS
    | {
        "per": Column("str", None, "what a part is: linear (linear layers that the engine fuses) or block"),
        "part": Column("str", None, "name of the part that alone is quantized; all: every part together"),
    }
    | DATASET
    | {
        "document": Column("int", None, "number of the document among those that were read, from 0: pairs the parts"),
        "tokens": Column("int", "tokens", "tokens that were predicted"),
        "negative_log_likelihood": Column("float", "nat", "summed over those tokens"),
        "baseline_negative_log_likelihood": Column("float", "nat", "the same with nothing quantized"),
        "kl_divergence": Column(
            "float", "nat", "of the 16-bit model's next-token distribution to this one, over all tokens, summed"
        ),
        "top1_agreement": Column("int", "tokens", "tokens at which both find the same next token the most likely"),
    },
}
