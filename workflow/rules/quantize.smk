"""Quantize a model by one scheme's recipe, with llm-compressor, offline.

needs   a staged model and, for calibrated schemes, a staged data set
makes   results/{study}/checkpoints/{model}/{scheme}.json, which points into the store
The target `schemes` prints what each scheme needs for that and what it yields.
"""


rule quantize_model:
    input:
        needs("quantize_model"),
        ready(STUDY.quantize_environment),
        manifest=ancient(f"results/{STUDY.study.name}/manifest.json"),
    output:
        STUDY.pattern("quantize_model"),
    log:
        "results/{study}/logs/quantize_model/{model}/{scheme}.log",
    threads: 1
    resources:
        **resources("quantize_model"),
    params:
        job=job("quantize_model"),
        # A function, or Snakemake would read braces in it as wildcards.
        python=lambda wildcards: python(STUDY.quantize_environment),
    shell:
        "{OFFLINE} {NODE} QUANTBENCH_LOG={log:q} {params.python} {SCRIPTS}/quantize_model.py"
        " --job={input.manifest:q}:quantize_model/{wildcards.model}/{wildcards.scheme}"
        " --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"


localrules:
    schemes,


rule schemes:
    input:
        manifest=f"results/{STUDY.study.name}/manifest.json",
    shell:
        "{sys.executable:q} {SCRIPTS}/show_schemes.py --manifest={input.manifest:q}"
