"""Gather the study's points from the store into tidy tables.

needs   results/{study}/manifest.json, and every point in the store
makes   results/{study}/tables/{table}.parquet and .csv
"""


localrules:
    build_tables,


rule build_tables:
    input:
        f"results/{STUDY.study.name}/manifest.json",
        pointers(),
        library("build_tables"),
    output:
        table_files(),
    shell:
        "{sys.executable:q} {SCRIPTS}/build_tables.py --manifest={input[0]:q} --store={STUDY.store.root:q}"
        " --output=results/{STUDY.study.name}/tables"
