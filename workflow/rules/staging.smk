"""Bring models, data sets and tasks' data into the store: all that needs the network, on the login node.

makes   results/{study}/models/{model}.json   results/{study}/datasets/{dataset}.json   results/{study}/tasks/{task}.json
"""


localrules:
    stage_model,
    stage_dataset,
    stage_task,


rule stage_model:
    input:
        staging_environment(),
    output:
        STUDY.pattern("stage_model"),
    log:
        "results/{study}/logs/stage_model/{model}.log",
    params:
        job=job("stage_model"),
    shell:
        "QUANTBENCH_CONSOLE=3 {STAGING_PYTHON} {SCRIPTS}/stage.py --job={params.job:q} --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"


rule stage_dataset:
    input:
        staging_environment(),
    output:
        STUDY.pattern("stage_dataset"),
    log:
        "results/{study}/logs/stage_dataset/{dataset}.log",
    params:
        job=job("stage_dataset"),
    shell:
        "QUANTBENCH_CONSOLE=3 {STAGING_PYTHON} {SCRIPTS}/stage.py --job={params.job:q} --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"


rule stage_task:
    input:
        staging_environment(),
    output:
        STUDY.pattern("stage_task"),
    log:
        "results/{study}/logs/stage_task/{task}.log",
    params:
        job=job("stage_task"),
    shell:
        "QUANTBENCH_CONSOLE=3 {STAGING_PYTHON:q} {SCRIPTS}/stage.py --job={params.job:q} --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"
