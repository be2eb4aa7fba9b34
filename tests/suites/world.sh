# Sourced by the scripts of suites: a world of their own, which ends with them. They are called so:
#
#   SUITE.sh HUSK CONTAINERD SUITES ROOT RUNTIME ARGUMENTS...
#
# HUSK, CONTAINERD and SUITES are directories with programs, ROOT is a root directory of busybox for the images, RUNTIME is
# the runtime's name in containerd, ARGUMENTS are for the suite's program.

if [ -z "${HUSK_SUITE_WORLD:-}" ]; then
	export HUSK_SUITE_WORLD=yes
	exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" "$@"
fi
husk=$1 containerd=$2 suites=$3 root=$4 runtime=$5
shift 5

# Everything that is written goes to memory. containerd keeps sockets below /run whatever its configuration says.
for directory in /run /usr/local /var/lib /var/cache; do
	mkdir -p "$directory"
	mount -t tmpfs tmpfs "$directory"
done
# Tests start copies of shims in other places, which find only a husk that is installed.
"$husk/husk" install > /dev/null
mkdir -p /run/suite/tmp
cd /run/suite
export TMPDIR=$PWD/tmp
ip link set lo up

# The registries that the suites name are this machine's.
printf '127.0.0.1 localhost ghcr.io registry.k8s.io\n' > hosts
mount --bind hosts /etc/hosts
mkfifo ready
"$suites/suites" "$root" authority.pem > ready &
read -r _ < ready
export SSL_CERT_FILE=$PWD/authority.pem

# Tests that need runc itself, and not just a runtime, ask for this.
case $runtime in
*.runc.*) ;;
*) export RUNC_FLAVOR=other ;;
esac
