#!/bin/sh
# Counts the instructions of containers under containerd, with runc's shim and with husk's: `ctr run --rm` of /bin/true, and
# `ctr tasks exec` of it. To be run where a nanosecond of the clock is an instruction:
#
#   cargo xtask build
#   cargo xtask host --icount --timeout 3000 -- tests/measure-ctr.sh
#
# Counted is everything that the processor does meanwhile, containerd's and ctr's part included, and with husk the guest and
# husk-vmm. The clock also goes on while everything waits for a timer, so the least of several runs is the measure. At the
# end stands where the time of husk's last run went, by the shim's own messages.
set -eu

programs=$PWD/target/x86_64-unknown-linux-musl/release
tree=$(ls -d "${HUSK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/husk}"/trees/busybox-* | tail -n 1)
runs=4

# Everything in memory: waiting for the files of the machine around counts as well.
work=$(mktemp -d /tmp/measure-XXXXXX)
trap 'kill $daemon 2> /dev/null; wait $daemon || true; rm -rf "$work"' EXIT
cp -r "$programs/husk-vmm" "$programs/containerd-shim-husk-v2" "$programs/guest" "$work"
cp "$(command -v runc)" "$(command -v containerd)" "$(command -v ctr)" "$(command -v containerd-shim-runc-v2)" "$work"
cp -a "$tree" "$work/root"
export HUSK_ROOT="$work/run" HUSK_IMAGE_CACHE="$work/images" PATH="$work:$PATH" CONTAINERD_ADDRESS="$work/socket"

cat > "$work/config.toml" << EOF
version = 2
root = "$work/data"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "$work/socket"
[debug]
address = "$work/debug"
level = "debug"
EOF
containerd --config "$work/config.toml" 2> "$work/log" &
daemon=$!
until ctr version > /dev/null 2>&1; do sleep 1; done


once() {
    ctr run --rm --rootfs --runtime "$1" "$work/root" "once-$2" /bin/true
}

again() {
    ctr tasks exec --exec-id "exec-$2" box /bin/true
}

# The least of the runs of a command with a runtime.
least() {
    run=0
    while [ $((run += 1)) -le $runs ]; do
        before=$(date +%s%N)
        "$1" "$2" $run > /dev/null
        echo $(($(date +%s%N) - before))
    done | sort -n | head -n 1
}

for runtime in runc husk; do
    name=io.containerd.$runtime.v2
    one=$(least once $name)
    ctr run --detach --rootfs --runtime $name "$work/root" box /bin/sleep 100000 > /dev/null
    two=$(least again $name)
    ctr tasks delete --force box > /dev/null 2>&1
    ctr containers delete box
    echo "$runtime: ctr run $((one / 1000000)), ctr tasks exec $((two / 1000000)) million instructions"
done
once io.containerd.husk.v2 last > /dev/null
echo "husk's last run, in millions since the shim's start:"
grep -o 'timeline: .* at_ns=[0-9]*' "$work/log" | tail -n 8 | sed 's/^timeline: //; s/ at_ns=/ /' | awk '
    { at = $NF; $NF = ""; if (NR == 1) first = at; printf "  %7.1f %s\n", (at - first) / 1e6, $0 }'
