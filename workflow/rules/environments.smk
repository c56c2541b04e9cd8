"""Build the pinned environments, each once: .venvs/<name>-<digest of its pins and of the Python version>.

needs   envs/{name}.txt, and the network: runs on the login node
makes   .venvs/{name}-{digest}/ready
"""


localrules:
    build_env,


rule build_env:
    output:
        ".venvs/{name}-{digest}/ready",
    wildcard_constraints:
        digest="[0-9a-f]{12}",
    params:
        # Not an input: the digest in the path says all that matters, so a comment in the pins rebuilds nothing.
        requirements="envs/{name}.txt",
    shell:
        "{sys.executable:q} {SCRIPTS}/build_env.py {params.requirements:q}"
