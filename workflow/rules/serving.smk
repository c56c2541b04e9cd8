"""Measure every request rate and concurrency of a variant: one server start.

needs   a checkpoint
makes   results/{study}/serving/{gpu}/{model}/{scheme}.json; the points go to the store
"""


rule measure_serving:
    input:
        needs("measure_serving"),
        engine_ready,
        manifest=f"results/{STUDY.study.name}/manifest.json",
    output:
        STUDY.pattern("measure_serving"),
    log:
        "results/{study}/logs/measure_serving/{gpu}/{model}/{scheme}.log",
    # A device measures one thing at a time; where the device is the CPU, that takes all of its cores.
    threads: workflow.cores
    resources:
        **resources("measure_serving"),
    params:
        job=job("measure_serving"),
        python=engine_python,
    shell:
        "{OFFLINE} {NODE} QUANTBENCH_LOG={log:q} {params.python} {SCRIPTS}/measure_serving.py"
        " --job={input.manifest:q}:measure_serving/{wildcards.gpu}/{wildcards.model}/{wildcards.scheme}"
        " --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"
