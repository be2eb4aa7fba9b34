#!/bin/sh
# containerd's suite of its CRI; world.sh tells how to call it.
set -eu
. "$(dirname "$0")/world.sh"

# Some tests start a containerd of their own, which looks for networks in the usual places.
for directory in /etc/cni /opt; do
	mkdir -p "$directory"
	mount -t tmpfs tmpfs "$directory"
done
mkdir -p /etc/cni/net.d /opt/cni
ln -s /usr/lib/cni /opt/cni/bin
cat > config.toml << END
version = 2
root = "/var/lib/containerd-test"
state = "/run/containerd-test"
[grpc]
address = "/run/containerd-test/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
drain_exec_sync_io_timeout = "10s"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "tested"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.tested]
runtime_type = "$runtime"
privileged_without_host_devices = true
[plugins."io.containerd.snapshotter.v1.overlayfs"]
slow_chown = true
[plugins."io.containerd.nri.v1.nri"]
disable = false
socket_path = "/var/run/nri-test.sock"
plugin_path = "/no/pre-launched/nri/plugins"
END
cat > /etc/cni/net.d/10-bridge.conflist << END
{
  "cniVersion": "1.0.0",
  "name": "suite",
  "plugins": [{
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": true,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }]
}
END
export PATH="/usr/local/bin:$containerd:$suites:/usr/sbin:/sbin:$PATH"
# Tests end it and wait for another one.
(while :; do
	containerd --config config.toml 2>> containerd.log
	sleep 1
done) &
until ctr --address /run/containerd-test/containerd.sock version > /dev/null 2>&1; do
	sleep 1
done
"$suites/integration.test" -cri-endpoint unix:///run/containerd-test/containerd.sock -containerd-bin containerd \
	-runtime-handler tested -build-dir "$containerd" "$@" || code=$?
cat containerd.log >&2
exit "${code:-0}"
