"""Render the report: one self-contained HTML file, its figures as JSON, and a summary in Markdown. Compare two studies.

needs   the study's manifest and tables
makes   reports/{study}.html   reports/{study}.summary.json   reports/{study}.md
"""


localrules:
    render_report,
    compare,


rule render_report:
    input:
        table_files(),
        library("render_report"),
        reference_files(),
        manifest=f"results/{STUDY.study.name}/manifest.json",
    output:
        html=f"reports/{STUDY.study.name}.html",
        summary=f"reports/{STUDY.study.name}.summary.json",
        markdown=f"reports/{STUDY.study.name}.md",
    params:
        # A function, or Snakemake would read braces in it as wildcards.
        title=lambda wildcards: STUDY.study.config["title"],
    shell:
        "{sys.executable:q} {SCRIPTS}/render_report.py --manifest={input.manifest:q} --title={params.title:q}"
        " --tables=results/{STUDY.study.name}/tables --output={output.html:q} --summary={output.summary:q}"
        " --markdown={output.markdown:q}"


# The study beside another, or beside itself at another time: snakemake compare --config compare=<study, folder or store>
rule compare:
    input:
        table_files(),
        manifest=f"results/{STUDY.study.name}/manifest.json",
    params:
        other=lambda wildcards: str(COMPARED or ""),
    shell:
        "{sys.executable:q} {SCRIPTS}/compare_studies.py --manifest={input.manifest:q}"
        " --tables=results/{STUDY.study.name}/tables --other={params.other:q}"
