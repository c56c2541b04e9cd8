"""Name every point of the study, say what is missing, and what the runs have used.

makes   results/{study}/manifest.json
"""


localrules:
    list_points,
    plan,
    usage,


rule list_points:
    output:
        f"results/{STUDY.study.name}/manifest.json",
    params:
        config=config_text,
        digest=STUDY.manifest_digest(),
    shell:
        "{sys.executable:q} {SCRIPTS}/list_points.py --config={params.config:q} --output={output:q}"


rule plan:
    input:
        [] if STUDY.planned else refuse_unstaged,
    params:
        config=config_text,
    shell:
        "{sys.executable:q} {SCRIPTS}/plan.py --config={params.config:q}"


rule usage:
    input:
        [] if STUDY.planned else refuse_unstaged,
    params:
        config=config_text,
    shell:
        "{sys.executable:q} {SCRIPTS}/usage.py --config={params.config:q}"
