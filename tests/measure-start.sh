#!/bin/sh
# Counts the instructions from a bundle to its process's first instruction, under runc and in a virtual machine of husk's
# that is running already. To be run where a nanosecond of the clock is an instruction:
#
#   cargo xtask build
#   cargo xtask host --icount -- tests/measure-start.sh
set -eu

programs=target/x86_64-unknown-linux-musl/release
tree=$(ls -d "${HUSK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/husk}"/trees/busybox-* | tail -n 1)
runs=4

# Everything in memory: the clock runs on while a program waits for the files of the machine around.
work=$(mktemp -d /tmp/measure-XXXXXX)
trap 'rm -rf "$work"' EXIT
cp -r "$programs/husk" "$programs/husk-vmm" "$programs/guest" "$(command -v runc)" "$work"
cp "$(command -v busybox)" "$work"
export HUSK_ROOT="$work/run" HUSK_IMAGE_CACHE="$work/images" PATH="$work:$PATH"

# A bundle with this name.
prepare() {
    bundle=$work/$1
    mkdir "$bundle"
    cp -a "$tree" "$bundle/rootfs"
    cd "$bundle"
    if [ "$1" = spec ]; then
        runc spec
        sed -i 's/"terminal": true/"terminal": false/; s/^\t\t\t"sh"$/\t\t\t"true"/' config.json
    else
        # docker's, recorded: without its daemon's hook, its profile of AppArmor, and its files.
        sed '/^ "hooks": {/,/^ },/d; /"apparmorProfile"/d; s/"echo docker ran"/"true"/; s#/bundle-file/#'"$bundle/"'#' \
            "$recorded" > config.json
        touch hosts hostname resolv.conf
    fi
}

now() {
    busybox date +%s%N 2> /dev/null || date +%s%N
}

million() {
    echo "$1: $(($2 / 1000000)).$(($2 / 100000 % 10)) million instructions"
}

recorded=$PWD/tests/data/bundles/docker.json
for kind in spec docker; do
    prepare $kind
    run=1
    while [ $run -le $runs ]; do
        before=$(date +%s%N)
        runc create --bundle "$bundle" box < /dev/null > /dev/null 2>&1
        created=$(date +%s%N)
        runc start box
        started=$(date +%s%N)
        million "$kind, runc, run $run: create" $((created - before))
        million "$kind, runc, run $run: start" $((started - created))
        while [ "$(runc state box | grep -c '"status": "stopped"')" = 0 ]; do :; done
        runc delete box

        husk run --timings --bundle "$bundle" --name box 2> timings > /dev/null
        # at, step, side, name: in milliseconds
        sed -n 's/^ *[0-9.]* *\([0-9.]*\) *[a-z]* *\(container created\|process.s first instruction\)$/\2: \1 million instructions/p' \
            timings | sed "s/^/$kind, husk, run $run: /"
        run=$((run + 1))
    done
    [ "$kind" = spec ] && cat timings
    cd - > /dev/null
done
