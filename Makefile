# `make demo` and `make test` need Python 3.11 to 3.13, make and a C compiler, nothing else.

PYTHON ?= python3

.PHONY: demo test slurm-test bench gpu-check format tiny

# The demo study: tiny model, real tools, on this machine's CPU. Prints the report's path.
demo:
	@env=$$($(PYTHON) workflow/scripts/build_env.py envs/workflow.txt) && \
	$$env/bin/python workflow/scripts/run_demo.py

# Everything that needs no GPU, as CI runs it.
test:
	@env=$$($(PYTHON) workflow/scripts/build_env.py envs/workflow.txt envs/test.txt) && \
	PATH="$$PWD/$$env/bin:$$PATH" bash tests/run

# What clusters do: a real Slurm with four GPU types comes up on this machine, and the tests marked slurm run on it. Needs
# Debian's slurm-wlm and munge (tests/slurm/cluster.py), root or not; without them the tests skip themselves and say so.
slurm-test:
	@env=$$($(PYTHON) workflow/scripts/build_env.py envs/workflow.txt envs/test.txt) && \
	PATH="$$PWD/$$env/bin:$$PATH" bash tests/run -m slurm

# How often the report would be wrong, by simulation; how long Snakemake takes to plan studies of many jobs; matrix products
# against torch.utils.benchmark; batches and loads turn and turn about with `vllm bench` on one engine and one server; and
# everything else against one `vllm bench` command per point, on the same plan. Measures; asserts nothing about time.
bench:
	@env=$$($(PYTHON) workflow/scripts/build_env.py envs/workflow.txt envs/test.txt) && \
	engine=$$($$env/bin/python workflow/scripts/build_env.py envs/engine-cpu.txt) && \
	$$env/bin/python tests/bench/error_rates.py && \
	PATH="$$PWD/$$env/bin:$$PATH" python tests/bench/scale.py && \
	$$engine/bin/python tests/bench/gemm.py --json reports/bench-gemm.json && \
	$$engine/bin/python tests/bench/alternate.py && \
	PATH="$$PWD/$$env/bin:$$PATH" python tests/bench/run.py

# What needs a GPU: its tests, then kernels beside what others measure there. Without a GPU every test skips itself.
gpu-check:
	@env=$$($(PYTHON) workflow/scripts/build_env.py envs/workflow.txt envs/test.txt) && \
	PATH="$$PWD/$$env/bin:$$PATH" bash tests/gpu_check

# Train the tiny model again.
tiny:
	@env=$$($(PYTHON) workflow/scripts/build_env.py envs/quantize-cpu.txt) && $$env/bin/python resources/tiny/train.py

format:
	@env=$$($(PYTHON) workflow/scripts/build_env.py envs/workflow.txt envs/test.txt) && \
	$$env/bin/ruff format . && $$env/bin/ruff check --fix . && $$env/bin/snakefmt Snakefile workflow/rules
