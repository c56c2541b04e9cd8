"""Time the matrix products of every model in every scheme, one process per gpu.

needs   the models' config.json
makes   results/{study}/kernels/{gpu}.json; the points go to the store
"""


rule measure_gemm:
    input:
        engine_ready,
        manifest=f"results/{STUDY.study.name}/manifest.json",
    output:
        STUDY.pattern("measure_gemm"),
    log:
        "results/{study}/logs/measure_gemm/{gpu}.log",
    # A device measures one thing at a time; where the device is the CPU, that takes all of its cores.
    threads: workflow.cores
    resources:
        **resources("measure_gemm"),
    params:
        job=job("measure_gemm"),
        python=engine_python,
    shell:
        "{OFFLINE} {NODE} QUANTBENCH_LOG={log:q} {params.python} {SCRIPTS}/measure_gemm.py"
        " --job={input.manifest:q}:measure_gemm/{wildcards.gpu}"
        " --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"
