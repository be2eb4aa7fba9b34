#!/bin/sh
# containerd's client suite, in a world of its own that ends with it:
#
#   client.sh HUSK CONTAINERD SUITES ROOT RUNTIME ARGUMENTS...
#
# HUSK, CONTAINERD and SUITES are directories with programs, ROOT is a root directory of busybox for the images, RUNTIME is
# the runtime's name in containerd, ARGUMENTS are for the suite's program.
set -eu

if [ -z "${HUSK_SUITE_WORLD:-}" ]; then
	export HUSK_SUITE_WORLD=yes
	exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" "$@"
fi
husk=$1 containerd=$2 suites=$3 root=$4 runtime=$5
shift 5

# Everything that is written goes to memory. containerd keeps sockets below /run whatever its configuration says.
for directory in /run /var/lib /var/cache; do
	mkdir -p "$directory"
	mount -t tmpfs tmpfs "$directory"
done
mkdir -p /run/suite/tmp
cd /run/suite
export TMPDIR=$PWD/tmp
ip link set lo up

# The registries that the suite names are this machine's.
printf '127.0.0.1 localhost ghcr.io registry.k8s.io\n' > hosts
mount --bind hosts /etc/hosts
mkfifo ready
"$suites/suites" "$root" authority.pem > ready &
read -r _ < ready
export SSL_CERT_FILE=$PWD/authority.pem

# The suite starts containerd with little in its configuration and waits two or four seconds for it, which is not enough for
# all of its parts where the processor is emulated. Those that serve Kubernetes have nothing to do here.
mkdir programs
cat > programs/containerd << END
#!/bin/sh
before=
for word; do
	case \$before in
	-c | --config)
		[ "\$1" = config ] || sed -i '/^disabled_plugins/d; 1i disabled_plugins = [ \\
			"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", \\
			"io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri" ]' "\$word"
		;;
	esac
	before=\$word
done
exec "$containerd/containerd" "\$@"
END
chmod +x programs/containerd
export PATH="$PWD/programs:$husk:$containerd:$suites:$PATH"
# Its program is read from the disk before anybody waits for it.
containerd --version > /dev/null

# Tests that need runc itself, and not just a runtime, ask for this.
case $runtime in
*.runc.*) ;;
*) export RUNC_FLAVOR=other ;;
esac
export TEST_RUNTIME="$runtime"
exec "$suites/client.test" -test.root "$@"
