#!/bin/sh
# Counts the instructions of a container's start, up to its process's first instruction: under runc, and in a virtual
# machine of husk's that is running already. To be run where a nanosecond of the clock is an instruction:
#
#   cargo xtask build
#   cargo xtask host --icount -- tests/measure-start.sh
#
# Counted is everything that the processor does meanwhile: runtime, kernel, and with husk the guest and husk-vmm. runc's
# part ends when `runc start` returns. The clock also goes on while everything waits for a timer, so the least of several
# runs is the measure.
set -eu

programs=$PWD/target/x86_64-unknown-linux-musl/release
tree=$(ls -d "${HUSK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/husk}"/trees/busybox-* | tail -n 1)
recorded=$PWD/tests/data/bundles/docker.json
runs=6

# Everything in memory: waiting for the files of the machine around counts as well.
work=$(mktemp -d /tmp/measure-XXXXXX)
trap 'rm -rf "$work"' EXIT
cp -r "$programs/husk" "$programs/husk-vmm" "$programs/guest" "$(command -v runc)" "$work"
export HUSK_ROOT="$work/run" HUSK_IMAGE_CACHE="$work/images" PATH="$work:$PATH"

# Makes a bundle: what `runc spec` writes, or docker's as it was recorded, without its daemon's hook and its AppArmor
# profile.
prepare() {
    bundle=$work/$1
    mkdir "$bundle"
    cp -a "$tree" "$bundle/rootfs"
    cd "$bundle"
    touch hosts hostname resolv.conf
    case $1 in
    spec) runc spec ;;
    docker) sed '/^ "hooks": {/,/^ },/d; /"apparmorProfile"/d; s#/bundle-file/#'"$bundle/#" "$recorded" > config.json ;;
    esac
    sed -i 's/"terminal": true/"terminal": false/; s/"sh"$/"true"/; s/^   "sh",$/   "true",/' config.json
}

with_runc() {
    before=$(date +%s%N)
    runc create --bundle "$bundle" box < /dev/null > /dev/null 2>&1
    created=$(date +%s%N)
    runc start box
    started=$(date +%s%N)
    until runc state box | grep -q '"status": "stopped"'; do :; done
    runc delete box
    echo $((started - before)) $((created - before)) $((started - created))
}

# husk tells milliseconds: at which, after how many, where, and what.
with_husk() {
    husk run --timings --bundle "$bundle" --name box 2>&1 > /dev/null | awk '
        /streams connected$/ { connected = $1 }
        /container created$/ { created = $1 }
        /first instruction$/ { started = $1 }
        END { print int((started - connected) * 1e6), int((created - connected) * 1e6), int((started - created) * 1e6) }'
}

for kind in spec docker; do
    prepare $kind
    for runtime in runc husk; do
        run=0
        while [ $((run += 1)) -le $runs ]; do
            with_$runtime
        done | sort -n | awk -v what="$kind, $runtime" '
            NR == 1 { printf "%s: %.1f million instructions: create %.1f, start %.1f\n", what, $1 / 1e6, $2 / 1e6, $3 / 1e6 }'
    done
done
