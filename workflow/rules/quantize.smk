"""Quantize a model by one scheme's recipe, with llm-compressor, offline.

needs   a staged model and, for calibrated schemes, a staged data set
makes   results/{study}/checkpoints/{model}/{scheme}.json, which points into the store
"""


rule quantize_model:
    input:
        needs("quantize_model"),
        ancient(f"{STUDY.environment(STUDY.quantize_environment)}/ready"),
        manifest=ancient(f"results/{STUDY.study.name}/manifest.json"),
    output:
        STUDY.pattern("quantize_model"),
    log:
        "results/{study}/logs/quantize_model/{model}/{scheme}.log",
    threads: 1
    params:
        job=job("quantize_model"),
        python=python(STUDY.quantize_environment),
    shell:
        "{OFFLINE} QUANTBENCH_LOG={log:q} {params.python:q} {SCRIPTS}/quantize_model.py"
        " --job={input.manifest:q}:quantize_model/{wildcards.model}/{wildcards.scheme}"
        " --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"
