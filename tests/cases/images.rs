//! Images: what is in them, what they say of their containers, and what is refused of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use husk_tests::images::{Compression, Layout, config, docker_archive, path};
use husk_tests::{Host, Husk, Outcome, Tar, prepared};
use serde_json::{Value, json};

/// Busybox with its shell and what the tests call, users, and nothing else.
fn base() -> Tar {
    let program = fs::read(prepared::busybox().join("bin/busybox")).unwrap();
    let applets = [
        "sh",
        "cat",
        "echo",
        "env",
        "id",
        "ls",
        "pwd",
        "sleep",
        "stat",
        "touch",
        "true",
        "sha256sum",
        "sort",
    ];
    let tar = Tar::new()
        .directory("./", 0o755)
        .directory("bin/", 0o755)
        .file("bin/busybox", 0o755, program)
        .directory("etc/", 0o755)
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0::/root:/bin/sh\nweb:x:300:301::/srv:/bin/sh\n",
        )
        .file("etc/group", 0o644, "root:x:0:\nweb:x:301:\nextra:x:302:web\n")
        .directory("tmp/", 0o1777);
    applets
        .iter()
        .fold(tar, |tar, name| tar.symlink(&format!("bin/{name}"), "busybox"))
}

/// A second layer that says who it is.
fn named(name: &str) -> Tar {
    Tar::new().file("name", 0o644, format!("{name}\n"))
}

fn layout(configuration: Value, layers: &[Tar]) -> Layout {
    let mut layout = Layout::new();
    let layers: Vec<_> = layers.iter().map(|layer| (layer.clone(), Compression::Gzip)).collect();
    let descriptor = layout.image(config(configuration), &layers);
    layout.tag(descriptor, "latest");
    layout
}

/// Writes a layout as a directory and gives its path.
fn written(host: &Host, name: &str, layout: &Layout) -> PathBuf {
    let directory = host.scratch().join(name);
    layout.write_directory(&directory);
    directory
}

trait Image {
    fn image(self, path: impl AsRef<Path>) -> Self;
}

impl Image for Husk<'_> {
    fn image(self, path: impl AsRef<Path>) -> Self {
        self.option("--image").option(path.as_ref())
    }
}

/// The files in the image cache with their inodes.
fn cached(host: &Host) -> BTreeSet<(PathBuf, u64)> {
    fn add(directory: &Path, found: &mut BTreeSet<(PathBuf, u64)>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                add(&entry.path(), found);
            } else if entry.file_name() != "lock" {
                found.insert((entry.path(), meta.ino()));
            }
        }
    }
    let mut found = BTreeSet::new();
    add(host.image_cache(), &mut found);
    found
}

#[test]
fn an_image_runs_whatever_holds_it_and_is_converted_once() {
    let host = Host::with_own_image_cache();
    let mut all = Layout::new();
    let compressions = [Compression::None, Compression::Gzip, Compression::Zstd];
    let layers = [base(), named("image"), Tar::new().file("last", 0o644, "layer\n")];
    let pairs: Vec<_> = layers.iter().cloned().zip(compressions).collect();
    let configuration = config(json!({"Cmd": ["cat", "/name", "/last"]}));
    let descriptor = all.image(configuration.clone(), &pairs);
    all.tag(descriptor, "1.0");
    let mut images = vec![written(&host, "layout", &all)];
    for (name, compression) in [("layout.tar", Compression::None), ("layout.tar.gz", Compression::Gzip)] {
        let path = host.scratch().join(name);
        all.write_archive(&path, compression);
        images.push(path);
    }
    let docker = host.scratch().join("docker.tar");
    fs::write(&docker, docker_archive(&[(configuration, &["app:1.0"], &layers)])).unwrap();
    images.push(docker);
    let mut before = BTreeSet::new();
    for image in images {
        host.husk()
            .image(&image)
            .run_bundle()
            .exits(0)
            .prints("image\nlayer\n")
            .is_quiet();
        let after = cached(&host);
        if !before.is_empty() {
            assert_eq!(after, before, "{}: nothing is converted", image.display());
        }
        before = after;
    }
    let tagged = format!("{}:1.0", host.scratch().join("layout").display());
    // The longest name, which is no host's.
    host.husk()
        .image(tagged)
        .name(&"n".repeat(128))
        .run(["echo", "other"])
        .exits(0)
        .prints("other\n");
}

#[test]
fn images_share_their_layers() {
    let host = Host::with_own_image_cache();
    for name in ["one", "two"] {
        let image = written(
            &host,
            name,
            &layout(json!({"Cmd": ["cat", "/name"]}), &[base(), named(name)]),
        );
        host.husk()
            .image(image)
            .run_bundle()
            .exits(0)
            .prints(&format!("{name}\n"));
    }
    let layers = fs::read_dir(host.image_cache().join("layers")).unwrap().flatten();
    let layers = layers.filter(|entry| entry.path().extension().is_some_and(|end| end == "layer"));
    assert_eq!(layers.count(), 3, "the base is there once");
    let listed = host.husk().command(["images", "--json"]);
    let listed: Vec<Value> = serde_json::from_str(listed.exits(0).stdout()).unwrap();
    let kinds: Vec<_> = listed.iter().map(|one| one["what"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["image", "image", "layer", "layer", "layer"]);
    assert!(
        listed[0]["name"].as_str().unwrap().ends_with("/two"),
        "what was used last is first"
    );
    let table = host.husk().command(["images"]);
    assert_eq!(table.exits(0).stdout().lines().count(), 3);
}

#[test]
fn layers_lie_over_each_other() {
    let host = Host::new();
    let long = "long/".to_owned() + &"n".repeat(120) + "/" + &"m".repeat(200);
    let middle = Tar::new()
        .directory("d/", 0o750)
        .file("d/gone", 0o644, "x")
        .file("d/kept", 0o644, "kept\n")
        .link("d/hard", "d/kept")
        .directory("o/", 0o755)
        .file("o/hidden", 0o644, "x")
        .file(&long, 0o644, "deep\n")
        .device("null", 0o666, 1, 3)
        .fifo("pipe", 0o600)
        .owner(70_000, 4_000_000_000)
        .file("far", 0o4711, "far\n")
        .owner(0, 0)
        .pax(&[("mtime", b"1234567890.123456789")])
        .file("dated", 0o755, "")
        .pax(&[
            ("GNU.sparse.size", b"3000000"),
            ("GNU.sparse.map", b"2000000,5,2999999,1"),
        ])
        .file("sparse", 0o644, "12345!");
    let upper = Tar::new()
        .whiteout("d/gone")
        .opaque("o")
        .file("o/shown", 0o644, "x")
        .link("linked", "d/kept")
        .symlink("escape", "../../..")
        .file("escape/made", 0o644, "made\n");
    let image = written(&host, "layers", &layout(json!({}), &[base(), middle, upper]));
    let script = format!(
        "ls /d /o; cat /d/kept /{long} /made; stat -c '%a %u %g %h %F' /d /d/hard /linked /null /pipe /far
         stat -c '%t %T' /null; stat -c '%y %s' /dated; stat -c %s /sparse; sha256sum < /sparse"
    );
    let mut sparse = vec![0; 3_000_000];
    sparse[2_000_000..2_000_005].copy_from_slice(b"12345");
    sparse[2_999_999] = b'!';
    let sum = husk_tests::images::digest(&sparse)[7..].to_owned();
    host.husk()
        .image(&image)
        .run(["sh", "-c", &script])
        .exits(0)
        .prints(&format!(
            "/d:\nhard\nkept\n\n/o:\nshown\nkept\ndeep\nmade\n750 0 0 2 directory\n644 0 0 3 regular file\n\
         644 0 0 3 regular file\n666 0 0 1 character special file\n600 0 0 1 fifo\n\
         4711 70000 4000000000 1 regular file\n1 3\n2009-02-13 23:31:30.123456789 +0000 0\n3000000\n{sum}  -\n"
        ));
}

#[test]
fn file_capabilities_count() {
    let host = Host::new();
    // struct vfs_cap_data, version 2, effective: permitted is CAP_NET_RAW.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let program = fs::read(prepared::busybox().join("bin/busybox")).unwrap();
    let layer = Tar::new()
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("bin/busybox-raw", 0o755, program);
    let image = written(&host, "capable", &layout(json!({"User": "web"}), &[base(), layer]));
    let held = host
        .husk()
        .image(&image)
        .run(["/bin/busybox-raw", "grep", "CapEff", "/proc/self/status"]);
    held.exits(0).prints("CapEff:\t0000000000002000\n");
}

#[test]
fn an_images_configuration_is_the_containers() {
    let host = Host::new();
    let image = |name: &str, more: Value| {
        let mut configuration = json!({
            "Entrypoint": ["sh", "-c", "echo \"$0:$*\"; id -u; id -g; id -G; pwd; echo $A $B $HOME $PATH"],
            "Cmd": ["zero", "one"],
            "Env": ["A=image", "B=b=c", "PATH=/bin"],
            "User": "web",
            "WorkingDir": "/not/there",
            "StopSignal": "SIGQUIT",
            "Labels": {"org.example": "label"},
        });
        for (key, value) in more.as_object().unwrap() {
            configuration[key] = value.clone();
        }
        written(&host, name, &layout(configuration, &[base()]))
    };
    let first = image("first", json!({}));
    let husk = || host.husk().image(&first);
    let said = husk().run_bundle();
    said.exits(0)
        .prints("zero:one\n300\n301\n301 302\n/not/there\nimage b=c /srv /bin\n");
    husk()
        .user("0:301")
        .workdir("/tmp")
        .env("A=mine")
        .run(["x", "y", "z"])
        .exits(0)
        .prints("x:y z\n0\n301\n301\n/tmp\nmine b=c /root /bin\n");
    husk()
        .option("--entrypoint=pwd")
        .run_bundle()
        .exits(0)
        .prints("/not/there\n");
    husk()
        .option("--entrypoint=")
        .run(["echo", "bare"])
        .exits(0)
        .prints("bare\n");
    husk()
        .option("--entrypoint=echo")
        .run(["a", "b"])
        .exits(0)
        .prints("a b\n");
    let numbers = image(
        "numbers",
        json!({"User": "300", "Entrypoint": null, "Cmd": ["id", "-G"]}),
    );
    host.husk().image(numbers).run_bundle().exits(0).prints("301 302\n");
    for (name, more, named) in [
        ("nobody", json!({"User": "mallory"}), "mallory"),
        ("group", json!({"User": "web:none"}), "none"),
        ("signal", json!({"StopSignal": "SIGNONSENSE"}), "SIGNONSENSE"),
        ("variable", json!({"Env": ["=x"]}), "=x"),
        ("command", json!({"Entrypoint": null, "Cmd": null}), "command"),
        ("volume", json!({"Volumes": {"/../x": {}}}), "/../x"),
    ] {
        host.husk().image(image(name, more)).run_bundle().fails(125, &[named]);
    }
}

#[test]
fn volumes_are_there_and_can_be_written() {
    let host = Host::new();
    let layer = Tar::new()
        .owner(300, 301)
        .directory("data/", 0o700)
        .file("data/seed", 0o600, "seed\n");
    let configuration = json!({"Volumes": {"/data": {}, "/new/volume": {}}});
    let image = written(&host, "volumes", &layout(configuration, &[base(), layer]));
    let script =
        "cat /data/seed; stat -c '%a %u' /data /new/volume; touch /data/x /new/volume/x && ls /data /new/volume";
    let expected = "seed\n700 300\n755 0\n/data:\nseed\nx\n\n/new/volume:\nx\n";
    host.husk()
        .image(&image)
        .run(["sh", "-c", script])
        .exits(0)
        .prints(expected);
    let read_only = format!("{script}; touch /tmp/x || echo protected");
    host.husk()
        .image(&image)
        .option("--read-only")
        .run(["sh", "-c", &read_only])
        .exits(0)
        .prints(&format!("{expected}protected\n"));
}

#[test]
fn the_users_of_an_image_are_its_own_in_exec_too() {
    let host = Host::new();
    let image = written(&host, "users", &layout(json!({"Cmd": ["sleep", "1000"]}), &[base()]));
    let mut running = host
        .husk()
        .image(&image)
        .name("users")
        .start(["sh", "-c", "echo up; exec sleep 1000"]);
    running.await_output("up\n");
    host.husk()
        .user("web")
        .exec("users", ["sh", "-c", "id -u; echo $HOME"])
        .exits(0)
        .prints("300\n/srv\n");
    host.husk()
        .user("tester")
        .exec("users", ["true"])
        .fails(125, &["tester"]);
    let listed = host.husk().command(["list", "--json"]);
    let listed: Value = serde_json::from_str(listed.exits(0).stdout()).unwrap();
    assert_eq!(
        listed[0]["annotations"]["org.opencontainers.image.ref.name"],
        json!(image.to_str().unwrap())
    );
    host.husk().command(["kill", "users", "KILL"]).exits(0);
    running.finish().exits(137);
}

#[test]
fn the_right_platform_is_chosen() {
    let host = Host::new();
    let mut all = Layout::new();
    let mut manifests = Vec::new();
    for architecture in ["arm64", "amd64", "riscv64"] {
        let mut configuration = config(json!({"Cmd": ["cat", "/name"]}));
        configuration["architecture"] = json!(architecture);
        let layers = [(base(), Compression::None), (named(architecture), Compression::None)];
        let mut descriptor = all.image(configuration, &layers);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        manifests.push(descriptor);
    }
    let index = all.index(&manifests);
    all.tag(index, "multi");
    let image = written(&host, "all", &all);
    host.husk().image(&image).run_bundle().exits(0).prints("amd64\n");
    manifests.remove(1);
    let mut others = all.untagged();
    let index = others.index(&manifests);
    others.tag(index, "multi");
    let image = written(&host, "others", &others);
    let refused = host.husk().image(&image).run_bundle();
    refused.fails(
        125,
        &[image.to_str().unwrap(), "linux/amd64", "linux/arm64", "linux/riscv64"],
    );
}

/// Runs an image that must be refused: one error, and nothing in the cache or elsewhere.
fn refused(name: &str, layers: &[Tar], things: &[&str]) {
    let host = Host::with_own_image_cache();
    let image = written(&host, name, &layout(json!({"Cmd": ["true"]}), layers));
    host.husk().image(image).run_bundle().fails(125, things);
    let kept: Vec<_> = cached(&host)
        .into_iter()
        .filter(|(path, _)| !path.ends_with("record.json"))
        .collect();
    let is_layer = |path: &Path| path.extension().is_some_and(|end| end == "layer");
    assert!(kept.iter().all(|(path, _)| is_layer(path)), "{kept:?}");
}

#[test]
fn layers_that_reach_out_or_make_no_sense_are_refused() {
    refused(
        "up",
        &[Tar::new().file("../../etc/passwd", 0o644, "x")],
        &["../../etc/passwd"],
    );
    refused("up-later", &[Tar::new().file("a/../../x", 0o644, "x")], &["a/../../x"]);
    let link = Tar::new()
        .file("x", 0o644, "x")
        .link("etc/shadow", "../../../etc/shadow");
    refused("link-out", &[link], &["etc/shadow", "../../../etc/shadow"]);
    refused("link-nowhere", &[Tar::new().link("a", "none")], &["\"a\"", "none"]);
    refused(
        "link-directory",
        &[Tar::new().directory("d/", 0o755).link("a", "d")],
        &["\"a\"", "\"d\""],
    );
    refused(
        "below-file",
        &[Tar::new().file("f", 0o644, "").file("f/x", 0o644, "")],
        &["f/x"],
    );
    let loops = Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", 0o644, "");
    refused("loop", &[loops], &["a/x", "links"]);
    refused("whiteout", &[Tar::new().file(".wh...", 0o644, "")], &[".wh..."]);
    refused("bomb", &[Tar::new().claims("bomb", 1 << 50)], &["bomb", "bytes"]);
    refused("long-name", &[Tar::new().file(&"x".repeat(300), 0o644, "")], &["name"]);
    refused("unknown", &[Tar::new().member(b'M', "x", "", 0o644, b"")], &["type"]);
    refused("cut", &[Tar::new().claims("cut", 100_000)], &["ends"]);
    refused("noise", &[Tar::new().raw(&[b'n'; 2048])], &["checksum"]);
}

#[test]
fn what_is_damaged_missing_or_foreign_is_named() {
    let host = Host::with_own_image_cache();
    let good = layout(json!({"Cmd": ["true"]}), &[base(), named("x")]);
    let blobs: Vec<_> = good.files.keys().cloned().collect();
    let run = |layout: &Layout, name: &str| -> Outcome {
        let image = written(&host, name, layout);
        let outcome = host.husk().image(&image).run_bundle();
        fs::remove_dir_all(image).unwrap();
        outcome
    };
    for (index, blob) in blobs.iter().enumerate() {
        let digest = blob.rsplit('/').next().unwrap();
        let mut missing = good.clone();
        missing.files.remove(blob);
        run(&missing, &format!("missing{index}")).fails(125, &[digest, "missing"]);
        let mut damaged = good.clone();
        let bytes = damaged.files.get_mut(blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        run(&damaged, &format!("damaged{index}")).fails(125, &[digest, "damaged"]);
    }
    let mut foreign = Layout::new();
    let blob = foreign.blob("application/vnd.oci.image.layer.nondistributable.v1.tar", b"");
    let mut configuration = config(json!({"Cmd": ["true"]}));
    configuration["rootfs"]["diff_ids"] = json!([blob["digest"]]);
    let descriptor = foreign.manifest(&configuration, &[blob]);
    foreign.add(descriptor);
    run(&foreign, "foreign").fails(125, &["nondistributable"]);
    let mut wrong = good.untagged();
    let layer = wrong.blob("application/vnd.oci.image.layer.v1.tar", &named("other").finish());
    configuration["rootfs"]["diff_ids"] = json!([format!("sha256:{}", "0".repeat(64))]);
    let descriptor = wrong.manifest(&configuration, std::slice::from_ref(&layer));
    wrong.add(descriptor);
    assert!(wrong.files.contains_key(&path(layer["digest"].as_str().unwrap())));
    run(&wrong, "wrong").fails(125, &[layer["digest"].as_str().unwrap(), "configuration"]);
}

#[test]
fn what_is_no_image_is_named() {
    let host = Host::new();
    let empty = host.scratch().join("empty");
    fs::create_dir(&empty).unwrap();
    let text = host.scratch().join("text");
    fs::write(&text, "this is no image\n").unwrap();
    for path in [
        empty,
        text,
        host.scratch().join("missing"),
        PathBuf::from("/dev/null"),
        PathBuf::new(),
    ] {
        let name = path.to_str().unwrap().to_owned();
        host.husk().image(&path).run(["true"]).fails(125, &[&name]);
    }
    let image = written(&host, "tags", &layout(json!({}), &[base()]));
    let tagged = format!("{}:none", image.display());
    host.husk()
        .image(tagged)
        .run(["true"])
        .fails(125, &["\"none\"", "latest"]);
    let both = host.husk().image(&image).rootfs(husk_tests::busybox()).run(["true"]);
    both.exits(125).mentions(&["--image", "--rootfs"]);
}

#[test]
fn pruning_leaves_what_is_in_use() {
    let host = Host::with_own_image_cache();
    let used = written(&host, "used", &layout(json!({}), &[base(), named("used")]));
    let free = written(&host, "free", &layout(json!({}), &[base(), named("free")]));
    host.husk().image(&free).run(["true"]).exits(0);
    host.husk().rootfs(husk_tests::busybox()).run(["true"]).exits(0);
    let mut running = host
        .husk()
        .image(&used)
        .name("used")
        .start(["sh", "-c", "echo up; sleep 1000"]);
    running.await_output("up\n");
    // The other image, its layer and the root directory.
    let pruned = host.husk().command(["cache", "prune", "--json"]);
    let pruned: Value = serde_json::from_str(pruned.exits(0).stdout()).unwrap();
    assert_eq!((&pruned["removed"], &pruned["kept"]), (&json!(3), &json!(3)));
    host.husk()
        .user("web")
        .exec("used", ["sh", "-c", "cat /name; id -u"])
        .exits(0)
        .prints("used\n300\n");
    host.husk().command(["kill", "used", "KILL"]).exits(0);
    running.finish().exits(137);
    host.husk().command(["cache", "prune"]).exits(0).mentions(&[]);
    assert_eq!(cached(&host), BTreeSet::new());
    host.husk().image(&used).run(["cat", "/name"]).exits(0).prints("used\n");
}

#[test]
fn images_need_no_privileges() {
    let host = Host::new();
    let layer = Tar::new()
        .device("null", 0o666, 1, 3)
        .owner(70_000, 5)
        .file("far", 0o4755, "far\n");
    let image = written(
        &host,
        "image",
        &layout(json!({"Cmd": ["stat", "-c", "%a %u %g", "/far"]}), &[base(), layer]),
    );
    let home = host.scratch().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(65534), Some(65534)).unwrap();
    let husk = host.husk().as_nobody().variable("HUSK_ROOT", home.join("run"));
    let husk = husk.variable("HUSK_IMAGE_CACHE", home.join("images"));
    husk.image(image).run_bundle().exits(0).prints("4755 70000 5\n");
}
