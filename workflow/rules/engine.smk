"""Measure latency, throughput, accuracy and perplexity of a variant: one engine start.

needs   a checkpoint and the staged data sets
makes   results/{study}/engine/{gpu}/{model}/{scheme}.json; the points go to the store
"""


rule measure_engine:
    input:
        needs("measure_engine"),
        engine_ready,
        manifest=f"results/{STUDY.study.name}/manifest.json",
    output:
        STUDY.pattern("measure_engine"),
    log:
        "results/{study}/logs/measure_engine/{gpu}/{model}/{scheme}.log",
    # A device measures one thing at a time; where the device is the CPU, that takes all of its cores.
    threads: workflow.cores
    resources:
        **resources("measure_engine"),
    params:
        job=job("measure_engine"),
        python=engine_python,
    shell:
        "{OFFLINE} {NODE} QUANTBENCH_LOG={log:q} {params.python} {SCRIPTS}/measure_engine.py"
        " --job={input.manifest:q}:measure_engine/{wildcards.gpu}/{wildcards.model}/{wildcards.scheme}"
        " --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"
