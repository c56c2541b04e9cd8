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
REPEAT = {"repeat": Column("int", None, "repeats of one point count from 0")}
ELAPSED = {"elapsed_s": Column("float", "s", "from handing the whole batch to the engine until its last token")}
LOAD = {
    "batch_size": Column("int", "sequences", "sequences handed to the engine at once"),
    "input_tokens": Column("int", "tokens", "prompt length of each sequence"),
    "output_tokens": Column("int", "tokens", "tokens generated for each sequence"),
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
    "gpus": RUN
    | STATUS
    | GPU
    | {
        "device_name": Column("str", None, "what the device calls itself"),
        "capability": Column("str", None, "CUDA compute capability, major.minor"),
        "memory_bytes": Column("int", "B", "memory of the device"),
        "driver": Column("str", None, "version of the device's driver"),
        "datasheet_bandwidth_bytes_per_s": Column("float", "B/s", "memory bandwidth by the data sheet"),
        "measured_bandwidth_bytes_per_s": Column("float", "B/s", "memory bandwidth reached by the probe"),
        "dtype": Column("str", None, "number format of the two rates that follow"),
        "datasheet_flops_per_s": Column("float", "1/s", "dense matrix operations per second by the data sheet"),
        "measured_flops_per_s": Column("float", "1/s", "dense matrix operations per second reached by the probe"),
    },
    "checkpoints": STATUS
    | MODEL
    | SCHEME
    | {
        "description": Column("str", None, "the scheme in a sentence"),
        "checkpoint_key": Column("str", None, "key of the weights in the store"),
        "calibration_key": Column("str", None, "key of the calibration data; null for a scheme that takes none"),
        "bytes": Column("int", "B", "size of the safetensors files"),
        "parameters": Column("int", None, "weights, counted before packing"),
        "bits_per_weight": Column("float", "bit", "of the quantized layers, with scales and zeros; of all if none is"),
        "quantize_s": Column("float", "s", "time of quantizing; null for weights that were not quantized"),
        "peak_memory_bytes": Column("int", "B", "most host memory that quantizing took"),
    },
    "kernels": KEYS
    | {
        "stage": Column("str", None, "who said so: engine (offline points) or server (serving points)"),
        "layer_kind": Column("str", None, "kind of linear layer, such as qkv_proj"),
        "layers": Column("int", None, "layers of this kind that ran this kernel"),
        "kernel": Column("str", None, "class of the kernel that ran"),
        "computes": Column("str", None, "what the kernel computes: bf16, w8a8-int8, w4a16, ..."),
        "expected": Column("str", None, "what the scheme promises to compute in this layer"),
        "verdict": Column(
            "str", None, "as_promised, computes_other, unquantized; null for a kernel nobody has described"
        ),
    },
    "gemm": KEYS
    | {
        "layer": Column("str", None, "layer of the model that has this shape"),
        "n": Column("int", None, "output features"),
        "k": Column("int", None, "input features"),
        "m": Column("int", "tokens", "rows of the activation"),
        "kernel": Column("str", None, "class of the kernel that was timed"),
        "computes": Column("str", None, "what that kernel computes"),
    }
    | REPEAT
    | {
        "latency_s": Column("float", "s", "time of one product"),
        "relative_error": Column("float", None, "norm of the error over norm of the product of unrounded numbers"),
        "includes_quantization": Column("bool", None, "whether quantizing the activation is part of the time"),
        "floor_s": Column("float", "s", "least time, by the ceilings that the probe measured on this device"),
    },
    "latency": KEYS
    | LOAD
    | REPEAT
    | ELAPSED
    | {"ttft_s": Column("float", "s", "time to the first token, the batch's last sequence")},
    "throughput": KEYS | LOAD | REPEAT | ELAPSED,
    "serving": KEYS
    | {
        "load": Column("str", None, "rate (Poisson arrivals) or concurrency (that many requests under way)"),
        "rate_per_s": Column("float", "1/s", "requests sent per second; null for load = concurrency"),
        "concurrency": Column("int", "requests", "requests under way; null for load = rate"),
        "input_tokens_asked": Column("int", "tokens", "prompt length asked for"),
        "output_tokens_asked": Column("int", "tokens", "output length asked for"),
        "request": Column("int", None, "requests of one load count from 0, in the order of their schedule"),
        "scheduled_s": Column("float", "s", "when it was due, since the load began; latencies count from here"),
        "sent_s": Column("float", "s", "when it was sent, since the load began"),
        "first_token_s": Column("float", "s", "when its first token came, since the load began"),
        "finished_s": Column("float", "s", "when its last token came, since the load began"),
        "input_tokens": Column("int", "tokens", "prompt tokens, counted by the server"),
        "output_tokens": Column("int", "tokens", "generated tokens, counted by the server"),
        "error": Column("str", None, "what went wrong with this request"),
    },
    "accuracy": KEYS
    | {"task": Column("str", None, "task of the LM Evaluation Harness, or the study's own")}
    | DATASET
    | {
        "shots": Column("int", None, "solved examples in the prompt"),
        "question": Column("int", None, "number of the question in its split, from 0: pairs the schemes"),
        "filter": Column("str", None, "how the answer was read out of the text"),
        "correct": Column("bool", None, "whether the answer is the target"),
        "answer": Column("str", None, "answer read out of the text"),
        "target": Column("str", None, "right answer"),
    },
    "perplexity": KEYS
    | DATASET
    | {
        "document": Column("int", None, "number of the document in its split, from 0: pairs the schemes"),
        "tokens": Column("int", "tokens", "tokens that were predicted"),
        "negative_log_likelihood": Column("float", "nat", "summed over those tokens"),
    },
}
