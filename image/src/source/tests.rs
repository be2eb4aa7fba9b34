use std::fs;

use husk_tests::Tar;
use husk_tests::images::{Compression, Layout, config, docker_archive, path};
use serde_json::{Value, json};

use super::*;

fn layer(name: &str) -> (Tar, Compression) {
    (Tar::new().file(name, 0o644, name), Compression::Gzip)
}

fn minimal() -> Value {
    config(json!({"Cmd": ["sh"]}))
}

fn for_platform(os: &str, architecture: &str) -> Value {
    let mut config = minimal();
    (config["os"], config["architecture"]) = (json!(os), json!(architecture));
    config
}

fn open(layout: &Layout) -> (tempfile::TempDir, Result<Source, SourceError>) {
    let directory = tempfile::tempdir().unwrap();
    layout.write_directory(directory.path());
    let source = Source::open(directory.path(), directory.path(), &Limits::DEFAULT);
    (directory, source)
}

fn image(layout: &Layout, tag: Option<&str>) -> Result<Image, SourceError> {
    open(layout).1?.image(tag)
}

fn convert(source: &Source, image: &Image) -> Result<(), SourceError> {
    image.layers.iter().try_for_each(|layer| {
        let file = tempfile::tempfile().unwrap();
        source.convert(layer, &file, &mut |_, _| {})
    })
}

fn cmd(image: &Image) -> String {
    image.config.cmd.join(" ")
}

#[test]
fn a_configuration_is_read() {
    let mut layout = Layout::new();
    let configuration = config(json!({
        "Entrypoint": ["/bin/e"], "Cmd": null, "Env": ["A=1"], "User": "u:g", "WorkingDir": "/w", "StopSignal": "SIGINT",
        "Volumes": {"/b/": {}, "/a/./x": {}}, "Labels": {"l": "v"}, "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": []},
    }));
    let descriptor = layout.image(configuration, &[layer("a"), layer("b")]);
    layout.add(descriptor);
    let found = image(&layout, None).unwrap();
    let expected = Config {
        entrypoint: vec!["/bin/e".into()],
        cmd: Vec::new(),
        env: vec!["A=1".into()],
        user: "u:g".into(),
        working_dir: "/w".into(),
        stop_signal: "SIGINT".into(),
        volumes: vec!["/a/x".into(), "/b".into()],
        labels: [("l".to_owned(), "v".to_owned())].into(),
    };
    assert_eq!(found.config, expected);
    assert_eq!(found.layers.len(), 2);
    for volume in ["relative", "/", "/../x", ""] {
        let mut layout = Layout::new();
        let descriptor = layout.image(config(json!({"Volumes": {volume: {}}})), &[]);
        layout.add(descriptor);
        assert!(matches!(image(&layout, None), Err(SourceError::Volume(_))), "{volume}");
    }
}

#[test]
fn a_tag_chooses_between_images() {
    let mut layout = Layout::new();
    for tag in ["1.0", "example.org/app:2.0"] {
        let descriptor = layout.image(config(json!({"Cmd": [tag]})), &[layer(tag)]);
        layout.tag(descriptor, tag);
    }
    assert_eq!(cmd(&image(&layout, Some("1.0")).unwrap()), "1.0");
    for tag in ["2.0", "example.org/app:2.0"] {
        assert_eq!(cmd(&image(&layout, Some(tag)).unwrap()), "example.org/app:2.0");
    }
    let error = image(&layout, None).unwrap_err().to_string();
    assert!(error.contains("1.0, example.org/app:2.0"), "{error}");
    let error = image(&layout, Some("3")).unwrap_err().to_string();
    assert!(
        error.contains("no image \"3\"") && error.contains("1.0, example"),
        "{error}"
    );
}

#[test]
fn the_platform_chooses_between_manifests() {
    let mut layout = Layout::new();
    let mut inner = Vec::new();
    for (os, architecture, variant) in [
        ("linux", "arm64", "v8"),
        ("linux", "amd64", "v3"),
        ("linux", "amd64", ""),
        ("windows", "amd64", ""),
        ("unknown", "unknown", ""),
    ] {
        let mut configuration = for_platform(os, architecture);
        configuration["config"]["Cmd"] = json!([format!("{os} {architecture} {variant}")]);
        let mut descriptor = layout.image(configuration, &[layer("x")]);
        descriptor["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
        inner.push(descriptor);
    }
    let index = layout.index(&inner);
    layout.tag(index, "all");
    assert_eq!(cmd(&image(&layout, Some("all")).unwrap()), "linux amd64 ");
    assert_eq!(cmd(&image(&layout, None).unwrap()), "linux amd64 ");
    // The manifests of other platforms need not be there.
    for other in [0, 3, 4] {
        layout.files.remove(&path(inner[other]["digest"].as_str().unwrap()));
    }
    assert!(image(&layout, None).is_ok());

    let mut others = Layout::new();
    let index = others.index(&[inner[0].clone(), inner[3].clone()]);
    others.add(index);
    let error = image(&others, None).unwrap_err();
    assert!(
        matches!(&error, SourceError::Platform { platforms, .. } if platforms == &["linux/arm64", "windows/amd64"])
    );
    assert!(error.to_string().contains("linux/amd64"), "{error}");
    // Without a platform in the index the configuration says it.
    let mut single = Layout::new();
    let descriptor = single.image(for_platform("linux", "s390x"), &[]);
    single.add(descriptor);
    assert!(matches!(image(&single, None), Err(SourceError::Platform { .. })));
}

#[test]
fn indexes_do_not_lead_on_for_ever() {
    let mut layout = Layout::new();
    let mut descriptor = layout.image(minimal(), &[]);
    for _ in 0..2 {
        descriptor = layout.index(&[descriptor]);
    }
    layout.add(descriptor.clone());
    assert!(image(&layout, None).is_ok());
    let deeper = layout.index(&[descriptor]);
    let mut layout = layout.untagged();
    layout.add(deeper);
    assert!(matches!(image(&layout, None), Err(SourceError::Nested(_))));
}

#[test]
fn each_container_of_images_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::new();
    let compressions = [Compression::None, Compression::Gzip, Compression::Zstd];
    let layers = compressions.map(|compression| (Tar::new().file("f", 0o644, format!("{compression:?}")), compression));
    let descriptor = layout.image(minimal(), &layers);
    layout.tag(descriptor, "t");
    layout.write_directory(&directory.path().join("layout"));
    let mut paths = vec![directory.path().join("layout")];
    for compression in compressions {
        let path = directory.path().join(format!("{compression:?}.tar"));
        layout.write_archive(&path, compression);
        paths.push(path);
    }
    let docker = directory.path().join("docker.tar");
    let plain = layers.clone().map(|(layer, _)| layer);
    fs::write(&docker, docker_archive(&[(minimal(), &["app:t"], &plain)])).unwrap();
    paths.push(docker);
    let mut diff_ids = Vec::new();
    for path in paths {
        let source = Source::open(&path, directory.path(), &Limits::DEFAULT).unwrap();
        let image = source.image(Some("t")).unwrap();
        convert(&source, &image).unwrap();
        diff_ids.push(
            image
                .layers
                .iter()
                .map(|layer| layer.diff_id.clone())
                .collect::<Vec<_>>(),
        );
    }
    diff_ids.dedup();
    assert_eq!(diff_ids.len(), 1, "all are the same image");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 5, "nothing is left");
}

#[test]
fn what_is_damaged_or_missing_is_named() {
    let mut layout = Layout::new();
    let descriptor = layout.image(minimal(), &[layer("one"), layer("two")]);
    layout.add(descriptor.clone());
    let good = image(&layout, None).unwrap();
    let manifest = descriptor["digest"].as_str().unwrap().to_owned();
    let text = String::from_utf8(layout.files[&path(&manifest)].clone()).unwrap();
    let configuration = serde_json::from_str::<Value>(&text).unwrap()["config"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let layer = good.layers[1].name().to_owned();
    for digest in [&manifest, &configuration, &layer] {
        let file = path(digest);
        let outcome = |change: &dyn Fn(&mut Layout)| {
            let mut layout = layout.clone();
            change(&mut layout);
            let (_directory, source) = open(&layout);
            let source = source.unwrap();
            source
                .image(None)
                .and_then(|image| convert(&source, &image))
                .unwrap_err()
        };
        let error = outcome(&|layout| drop(layout.files.remove(&file)));
        assert!(matches!(&error, SourceError::NoBlob(name) if name == digest), "{error}");
        let error = outcome(&|layout| {
            let bytes = layout.files.get_mut(&file).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        });
        assert!(
            matches!(&error, SourceError::Digest { digest: named, .. } if named == digest),
            "{error}"
        );
        let error = outcome(&|layout| layout.files.get_mut(&file).unwrap().push(0));
        assert!(
            matches!(&error, SourceError::Size { digest: named, .. } if named == digest),
            "{error}"
        );
    }
}

#[test]
fn layers_are_what_the_configuration_means() {
    let mut layout = Layout::new();
    let tar = Tar::new().file("f", 0, "x").finish();
    let blob = layout.blob("application/vnd.oci.image.layer.v1.tar", &tar);
    let with = |ids: Value| {
        let mut configuration = minimal();
        configuration["rootfs"]["diff_ids"] = ids;
        configuration
    };
    let wrong = json!([format!("sha256:{}", "0".repeat(64))]);
    let descriptor = layout.manifest(&with(wrong), std::slice::from_ref(&blob));
    layout.add(descriptor);
    let (_directory, source) = open(&layout);
    let source = source.unwrap();
    let error = convert(&source, &source.image(None).unwrap()).unwrap_err();
    assert!(matches!(error, SourceError::WrongLayer { .. }), "{error}");
    for (ids, layers) in [(json!([]), vec![blob.clone()]), (json!([blob["digest"]]), vec![])] {
        let mut layout = layout.untagged();
        let descriptor = layout.manifest(&with(ids), &layers);
        layout.add(descriptor);
        assert!(matches!(image(&layout, None), Err(SourceError::Count { .. })));
    }
    let mut layout = layout.untagged();
    let descriptor = layout.manifest(&with(json!(["nonsense"])), &[blob]);
    layout.add(descriptor);
    assert!(matches!(image(&layout, None), Err(SourceError::DiffId(_))));
}

#[test]
fn foreign_and_unknown_layers_are_refused_by_name() {
    for (media_type, foreign) in [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", true),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true),
        ("application/vnd.oci.image.layer.v1.tar+encrypted", false),
        ("text/plain", false),
    ] {
        let mut layout = Layout::new();
        let blob = layout.blob(media_type, b"");
        let mut configuration = minimal();
        configuration["rootfs"]["diff_ids"] = json!([blob["digest"]]);
        let descriptor = layout.manifest(&configuration, &[blob]);
        layout.add(descriptor);
        let error = image(&layout, None).unwrap_err();
        assert_eq!(matches!(error, SourceError::Foreign { .. }), foreign, "{error}");
        assert!(error.to_string().contains(media_type), "{error}");
    }
}

#[test]
fn bombs_are_bounded() {
    let mut layout = Layout::new();
    let bomb = Tar::new().file("zeros", 0, vec![0; 3 << 20]);
    let descriptor = layout.image(minimal(), &[(bomb, Compression::Gzip)]);
    layout.add(descriptor);
    let directory = tempfile::tempdir().unwrap();
    layout.write_directory(directory.path());
    let limits = Limits {
        layer_bytes: 1 << 20,
        ..Limits::DEFAULT
    };
    // The file alone is too long; with a larger limit the archive around it is.
    for (layer_bytes, by_layer) in [(1 << 20, false), (3 << 20, true)] {
        let limits = Limits { layer_bytes, ..limits };
        let source = Source::open(directory.path(), directory.path(), &limits).unwrap();
        let error = convert(&source, &source.image(None).unwrap()).unwrap_err();
        assert_eq!(matches!(error, SourceError::LongLayer { .. }), by_layer, "{error:?}");
    }
    let few = Limits { layers: 0, ..limits };
    let source = Source::open(directory.path(), directory.path(), &few).unwrap();
    assert!(matches!(
        source.image(None),
        Err(SourceError::Layers { found: 1, limit: 0 })
    ));
    let short = Limits {
        json_bytes: 10,
        ..limits
    };
    let source = Source::open(directory.path(), directory.path(), &short).unwrap();
    assert!(matches!(source.image(None), Err(SourceError::LongJson { .. })));
    let archive = directory.path().join("archive");
    layout.write_archive(&archive, Compression::Gzip);
    let small = Limits {
        archive_bytes: 4096,
        ..limits
    };
    assert!(matches!(
        Source::open(&archive, directory.path(), &small),
        Err(SourceError::LongArchive(..))
    ));
    let members = Limits {
        archive_members: 2,
        ..limits
    };
    assert!(matches!(
        Source::open(&archive, directory.path(), &members),
        Err(SourceError::Members(..))
    ));
}

#[test]
fn docker_archives_are_chosen_from_by_tag() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("docker.tar");
    let named = |name: &str| config(json!({"Cmd": [name]}));
    let layers = [Tar::new().file("f", 0, "x")];
    let images = [
        (named("one"), &["app:1"][..], &layers[..]),
        (named("two"), &["app:2", "localhost:5000/app:latest"], &layers),
        (for_platform("linux", "arm64"), &["arm:1"], &layers),
    ];
    fs::write(&archive, docker_archive(&images)).unwrap();
    let source = Source::open(&archive, directory.path(), &Limits::DEFAULT).unwrap();
    assert_eq!(cmd(&source.image(Some("app:1")).unwrap()), "one");
    assert_eq!(cmd(&source.image(Some("2")).unwrap()), "two");
    assert_eq!(cmd(&source.image(Some("localhost:5000/app:latest")).unwrap()), "two");
    assert!(matches!(source.image(None), Err(SourceError::Several { .. })));
    assert!(matches!(source.image(Some("app")), Err(SourceError::NoTag { .. })));
    assert!(matches!(source.image(Some("arm:1")), Err(SourceError::Platform { .. })));
}

#[test]
fn links_in_archives_lead_to_members() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("docker.tar");
    let layer = Tar::new().file("f", 0, "x").finish();
    let mut configuration = minimal();
    let id = husk_tests::images::digest(&layer);
    configuration["rootfs"]["diff_ids"] = json!([id, id, id]);
    let items = json!([{"Config": "config.json", "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar", "c"]}]);
    let tar = Tar::new()
        .file("a/layer.tar", 0, &layer)
        .symlink("b/layer.tar", "../a/layer.tar")
        .link("c", "./b/layer.tar")
        .symlink("loop", "loop")
        .file("config.json", 0, configuration.to_string())
        .file("manifest.json", 0, items.to_string());
    fs::write(&archive, tar.finish()).unwrap();
    let source = Source::open(&archive, directory.path(), &Limits::DEFAULT).unwrap();
    convert(&source, &source.image(None).unwrap()).unwrap();
    assert!(source.files.file("loop").unwrap().is_none());
}

#[test]
fn what_holds_no_image_is_said_to_hold_none() {
    let directory = tempfile::tempdir().unwrap();
    let open = |path: &Path| Source::open(path, directory.path(), &Limits::DEFAULT);
    assert!(matches!(
        open(&directory.path().join("none")),
        Err(SourceError::Missing(_))
    ));
    assert!(matches!(open(directory.path()), Err(SourceError::Kind(_))));
    assert!(matches!(open(Path::new("/dev/null")), Err(SourceError::Kind(_))));
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"this is no archive, however long it may be"),
    ] {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert!(
            matches!(open(&path), Err(SourceError::Kind(_) | SourceError::Archive(..))),
            "{name}"
        );
    }
    let archive = directory.path().join("archive");
    fs::write(&archive, Tar::new().file("f", 0, "x").finish()).unwrap();
    assert!(matches!(open(&archive), Err(SourceError::Kind(_))));
    let mut layout = Layout::new();
    layout
        .files
        .insert("oci-layout".into(), br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec());
    assert!(matches!(image(&layout, None), Err(SourceError::Version(_))));
    layout.files.insert("oci-layout".into(), b"{".to_vec());
    assert!(matches!(image(&layout, None), Err(SourceError::Json(..))));
    assert!(matches!(image(&Layout::new(), None), Err(SourceError::Platform { .. })));
}
