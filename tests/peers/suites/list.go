package main

import "os"

// Users and groups of busybox's image that the suites name.
const (
	passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nsys:x:3:3:sys:/dev:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n" +
		"backup:x:34:34:backup:/var/backups:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
	group = "root:x:0:\ndaemon:x:1:\nsys:x:3:\nwheel:x:10:root\nwww-data:x:33:\nbackup:x:34:\nnogroup:x:65534:\n"
	// It takes 100 MB of memory for 30 seconds, whatever it is told.
	stress = "#!/bin/sh\n(head -c 104857600 /dev/zero; sleep 30) | tail -c 104857601 > /dev/null\n"
	// The suites' own image has an nc that ends on SIGTERM as a namespace's first process too; not every busybox has.
	nc = "#!/bin/sh\nbusybox nc \"$@\" &\ntrap 'kill $!; exit 143' TERM\nwait $!\n"
)

// Platforms besides this machine's of images that have several.
var others = []string{"linux/arm64/v8", "linux/s390x", "linux/ppc64le", "linux/arm/v7"}

// The images that the suites pull, by the names that they have there.
func images(root string) (*store, error) {
	made := &store{blobs: map[string][]byte{}, types: map[string]string{}, tags: map[string]string{}}
	base, err := archiveOf(root, entry{name: "etc/passwd", mode: 0o644, content: passwd},
		entry{name: "etc/group", mode: 0o644, content: group}, entry{name: "bin/nc", mode: 0o755, content: nc})
	if err != nil {
		return nil, err
	}
	shell := map[string]any{"Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, "Cmd": []string{"sh"}}
	made.several("containerd/busybox:1.36", shell, base)
	made.several("e2e-test-images/busybox:1.29-2", shell, base, named("1.29-2"))
	release := archive(entry{name: "etc/", mode: 0o755}, entry{name: "etc/os-release", mode: 0o644, content: "NAME=\"Alpine Linux\"\n"},
		entry{name: "os-release", mode: 0o644, content: "ID=tests\n"})
	made.several("containerd/alpine:3.14.0", shell, base, release)
	waits := map[string]any{"Env": shell["Env"], "Cmd": []string{"sleep", "86400"}}
	made.several("containerd/nginx:1.27.0", waits, base, named("nginx"))
	made.several("e2e-test-images/resource-consumer:1.10", waits, base,
		archive(entry{name: "bin/", mode: 0o755}, entry{name: "bin/stress", mode: 0o755, content: stress}))

	directory := func(name, file string) []byte {
		return archive(entry{name: name, mode: 0o755}, entry{name: name + file, mode: 0o644, content: "test_content\n"})
	}
	volumes := map[string]any{"Env": shell["Env"], "Cmd": shell["Cmd"], "Volumes": map[string]any{
		"/test_dir": map[string]any{}, "C:/weird_test_dir": map[string]any{}, "/:colon_prefixed": map[string]any{},
	}}
	made.several("containerd/volume-copy-up:2.2", volumes, base, directory("test_dir/", "test_file"),
		archive(entry{name: "C:/", mode: 0o755}, entry{name: "C:/weird_test_dir/", mode: 0o755},
			entry{name: "C:/weird_test_dir/weird_test_file", mode: 0o644, content: "test_content\n"}),
		directory(":colon_prefixed/", "colon_prefixed_file"))

	volume := map[string]any{"Env": shell["Env"], "Cmd": shell["Cmd"], "Volumes": map[string]any{"/test_dir": map[string]any{}}}
	made.several("containerd/volume-ownership:2.1", volume, base, archive(
		entry{name: "test_dir/", mode: 0o755, uid: 65534, gid: 65534},
		// A mount point that a root that is read-only cannot get any more.
		entry{name: "run/", mode: 0o755},
		entry{name: "bin/bash", mode: 0o755, content: "#!/bin/sh\nexec /bin/sh \"$@\"\n"},
		entry{name: "usr/", mode: 0o755}, entry{name: "usr/bin/", mode: 0o755},
		entry{name: "usr/bin/passwd", mode: 0o4755, content: "#!/bin/sh\n"}))

	// What the sandbox's image is for is to wait until it is told to end.
	busybox, err := os.ReadFile(root + "/bin/busybox")
	if err != nil {
		return nil, err
	}
	pauses := archive(entry{name: "busybox", mode: 0o755, content: string(busybox)}, entry{name: "pause", mode: 0o755, content: "#!/busybox sh\n" +
		"trap 'exit 0' TERM INT\nwhile :; do /busybox sleep 86400 & wait $!; done\n"})
	for _, tag := range []string{"3.10.2", "3.10.1", "3.10", "3.6"} {
		made.several("pause:"+tag, map[string]any{"Entrypoint": []string{"/pause"}}, pauses, named(tag))
	}
	windows := made.image("windows/amd64", map[string]any{}, named("windows"))
	made.tag("containerd/windows/nanoserver:1809", windows)
	return made, nil
}

// An image for this machine, and small ones for other platforms under the same name.
func (s *store) several(name string, settings map[string]any, layers ...[]byte) {
	images := []descriptor{s.image("linux/amd64", settings, layers...)}
	for _, platform := range others {
		images = append(images, s.image(platform, settings, named(name+" "+platform)))
	}
	s.tag(name, images...)
}

// A layer that is like no other.
func named(content string) []byte {
	return archive(entry{name: "made-for", mode: 0o644, content: content})
}
