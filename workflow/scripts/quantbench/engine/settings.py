"""The process environment an engine runs in; to be set before torch or vLLM is imported."""

import os


def engine_environment(gpu_entry):
    """Environment variables for an engine on this device, as {name: value}; what the user has set wins."""
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_COLOR": "0",
        # One node is enough: a node without a network has no other address, and none other should listen.
        "VLLM_HOST_IP": "127.0.0.1",
    }
    if gpu_entry["environment"].endswith("-cpu"):
        cores = len(os.sched_getaffinity(0))
        variables |= {
            # vLLM's default binding leaves a core idle.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(cores),
            # An offline engine in this very process is ready in 2 s instead of 16 s; a server is not affected.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Spinning threads turned 0.04 s into 0.9 s beside a busy neighbour.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    else:
        # As the driver counts, which identifies the device; CUDA's own order is by speed.
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return {name: os.environ.get(name, value) for name, value in variables.items()}
