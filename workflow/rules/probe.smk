"""Ask a device what it is, and measure its two ceilings: bandwidth and matrix rate.

needs   nothing
makes   results/{study}/gpus/{gpu}.json
"""


rule probe_gpu:
    input:
        engine_ready,
        manifest=ancient(f"results/{STUDY.study.name}/manifest.json"),
    output:
        STUDY.pattern("probe_gpu"),
    log:
        "results/{study}/logs/probe_gpu/{gpu}.log",
    # A device measures one thing at a time; where the device is the CPU, that takes all of its cores.
    threads: workflow.cores
    resources:
        **resources("probe_gpu"),
    params:
        job=job("probe_gpu"),
        python=engine_python,
    shell:
        "{OFFLINE} {NODE} QUANTBENCH_LOG={log:q} {params.python} {SCRIPTS}/probe_gpu.py"
        " --job={input.manifest:q}:probe_gpu/{wildcards.gpu}"
        " --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"
