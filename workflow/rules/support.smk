"""Ask the engine which kernel it takes for every scheme on every device, and print the matrix. No device is needed.

needs   nothing
makes   results/{study}/support/{gpu}.json
"""


localrules:
    ask_support,
    support,


rule ask_support:
    input:
        engine_ready,
        manifest=f"results/{STUDY.study.name}/manifest.json",
    output:
        STUDY.pattern("ask_support"),
    log:
        "results/{study}/logs/ask_support/{gpu}.log",
    # Importing the engine takes all cores for seconds.
    threads: workflow.cores
    params:
        job=job("ask_support"),
        python=engine_python,
    shell:
        "{OFFLINE} {NODE} QUANTBENCH_LOG={log:q} {params.python} {SCRIPTS}/ask_support.py"
        " --job={input.manifest:q}:ask_support/{wildcards.gpu}"
        " --store={STUDY.store.root:q} --output={output:q}"
        " 3>&2 > {log:q} 2>&1"


rule support:
    input:
        pointers("ask_support"),
        manifest=f"results/{STUDY.study.name}/manifest.json",
    shell:
        "{sys.executable:q} {SCRIPTS}/show_support.py --manifest={input.manifest:q} --store={STUDY.store.root:q}"
