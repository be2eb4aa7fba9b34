#!/bin/sh
# containerd's client suite; world.sh tells how to call it.
set -eu
. "$(dirname "$0")/world.sh"

# The suite starts containerd with little in its configuration and waits two or four seconds for it, which is not enough for
# all of its parts where the processor is emulated. Those that serve Kubernetes have nothing to do here.
mkdir programs
cat > programs/containerd << END
#!/bin/sh
before=
for word; do
	case \$before in
	-c | --config)
		[ "\$1" = config ] || grep -q ^disabled_plugins "\$word" || sed -i '1i disabled_plugins = [ \
			"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", \
			"io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri" ]' "\$word"
		;;
	esac
	before=\$word
done
exec "$containerd/containerd" "\$@"
END
chmod +x programs/containerd
export PATH="$PWD/programs:/usr/local/bin:$containerd:$suites:$PATH"
# Its program is read from the disk before anybody waits for it.
containerd --version > /dev/null

export TEST_RUNTIME="$runtime"
exec "$suites/client.test" -test.root "$@"
