"""One class per operator of gemm/raw_ops.py, by family; what they share is in base.py, layouts.py and vllm_calls.py."""
