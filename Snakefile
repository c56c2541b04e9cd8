"""quantbench: which quantization format, on which GPU, for this model and this load?

snakemake                        the study of config/config.yaml, from download to report
snakemake schemes | support      what each scheme needs; what each device does with it
snakemake plan                   what is missing, why, and what it would cost
snakemake usage                  device hours that the runs used, and what a rerun would cost
snakemake staging                all that needs the network
snakemake compare --config compare=<study, folder or store>    what changed, and what differs in how it was measured
snakemake --configfile config/<study>.yaml ...
"""


include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        pointers(),
        table_files(),
        report_files(),


include: "workflow/rules/slurm.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/environments.smk"
include: "workflow/rules/staging.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/sensitivity.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/support.smk"
include: "workflow/rules/kernels.smk"
include: "workflow/rules/engine.smk"
include: "workflow/rules/serving.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"


# Milestones, in running order; each is what `snakemake <name>` brings up to date.
rule staging:
    input:
        staged(),
        environments(),


rule checkpoints:
    input:
        pointers("quantize_model"),


rule kernels:
    input:
        pointers("probe_gpu"),
        pointers("ask_support"),
        pointers("measure_gemm"),


rule measurements:
    input:
        pointers("quantize_model", *MEASURING),


rule tables:
    input:
        pointers(),
        table_files(),


rule report:
    input:
        pointers(),
        report_files(),
