#!/bin/bash
# Run a command with environment modules loaded: with_modules.sh cuda/12.9 vllm/0.32.0 -- python3 script.py
# A job's shell is no login shell, so the `module` command may have to be found first: Lmod's or Tcl's, wherever a site has it.
# Their scripts count on neither option.
set +eu
names=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    names+=("$1")
    shift
done
shift
for file in "${LMOD_PKG:-}/init/bash" "${MODULESHOME:-}/init/bash" /etc/profile.d/{lmod,z00_lmod,modules}.sh /usr/share/{lmod/lmod,modules}/init/bash; do
    [ "$(type -t module)" ] && break
    [ -r "$file" ] && . "$file"
done
if [ -z "$(type -t module)" ]; then
    echo "error: config/cluster.yaml asks for modules (${names[*]}), but $(hostname) has no module command" >&2
    exit 2
fi
# One by one: old versions of Tcl's modules say in words alone that a module is not there.
for name in "${names[@]}"; do
    said=$(module load "$name" 2>&1 >/dev/null)
    if ! module load "$name" || [[ $said == *ERROR* || $said == *"Unable to locate"* ]]; then
        echo "error: module load $name failed on $(hostname): $(echo "$said" | head -n 3 | tr '\n' ' ')(environments in config/cluster.yaml)" >&2
        exit 2
    fi
done
exec "$@"
