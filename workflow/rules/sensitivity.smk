"""Quantize one part of a model at a time, all else in 16 bits: which layers suffer.

needs   a checkpoint of the scheme, the 16-bit model and the staged data set
makes   results/{study}/sensitivity/{model}/{scheme}.json; the points go to the store
"""


rule measure_sensitivity:
    input:
        needs("measure_sensitivity"),
        ready(STUDY.quantize_environment),
        manifest=ancient(f"results/{STUDY.study.name}/manifest.json"),
    output:
        STUDY.pattern("measure_sensitivity"),
    log:
        "results/{study}/logs/measure_sensitivity/{model}/{scheme}.log",
    threads: 1
    resources:
        **resources("measure_sensitivity"),
    params:
        job=job("measure_sensitivity"),
        # A function, or Snakemake would read braces in it as wildcards.
        python=lambda wildcards: python(STUDY.quantize_environment),
    shell:
        "{OFFLINE} {NODE} QUANTBENCH_LOG={log:q} {params.python} {SCRIPTS}/measure_sensitivity.py"
        " --job={input.manifest:q}:measure_sensitivity/{wildcards.model}/{wildcards.scheme}"
        " --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"
