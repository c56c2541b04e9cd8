"""Render the report: one self-contained HTML file, and its figures as JSON.

needs   the study's manifest and tables
makes   reports/{study}.html   reports/{study}.summary.json
"""


localrules:
    render_report,


rule render_report:
    input:
        table_files(),
        library("render_report"),
        reference_files(),
        manifest=f"results/{STUDY.study.name}/manifest.json",
    output:
        html=f"reports/{STUDY.study.name}.html",
        summary=f"reports/{STUDY.study.name}.summary.json",
    params:
        # A function, or Snakemake would read braces in it as wildcards.
        title=lambda wildcards: STUDY.study.config["title"],
    shell:
        "{sys.executable:q} {SCRIPTS}/render_report.py --manifest={input.manifest:q} --title={params.title:q}"
        " --tables=results/{STUDY.study.name}/tables --output={output.html:q} --summary={output.summary:q}"
