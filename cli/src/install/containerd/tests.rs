use proptest::prelude::*;

use super::*;

/// Debian 12's and 13's `/etc/containerd/config.toml`.
const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;

/// A part of what containerd 1.6 prints with `config default`.
const DEFAULT_1: &str = r#"disabled_plugins = []
oom_score = 0
version = 2

[plugins]

  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.6"

    [plugins."io.containerd.grpc.v1.cri".containerd]
      default_runtime_name = "runc"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]

        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
          runtime_type = "io.containerd.runc.v2"

          [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
            SystemdCgroup = false

[timeouts]
  "io.containerd.timeout.bolt.open" = "0s"
"#;

/// A part of what containerd 2.4 prints, with its single quotes.
const DEFAULT_2: &str = r"version = 4
root = '/var/lib/containerd'
imports = ['/etc/containerd/conf.d/*.toml']

[plugins]
  [plugins.'io.containerd.cri.v1.runtime']
    enable_selinux = false

    [plugins.'io.containerd.cri.v1.runtime'.containerd]
      default_runtime_name = 'runc'

      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]
        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
          runtime_type = 'io.containerd.runc.v2'

    [plugins.'io.containerd.cri.v1.runtime'.cni]
      bin_dirs = ['/opt/cni/bin']

  [plugins.'io.containerd.grpc.v1.cri']
    disable_tcp_service = true
";

const SECTION_2: &str = r#"[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.husk]
  runtime_type = "io.containerd.husk.v2"
  privileged_without_host_devices = true
  pod_annotations = ["dev.husk.*"]
  container_annotations = ["dev.husk.*"]
"#;

fn section_3() -> String {
    SECTION_2.replace(CRI, CRI_RUNTIME)
}

fn asked() -> u32 {
    panic!("the file has a version")
}

/// Adds the runtime, which is the same twice and leaves nothing when it is removed.
fn added(text: &str) -> String {
    let added = add(text, asked).unwrap_or_else(|error| panic!("{error} in\n{text}"));
    assert_eq!(add(&added, asked).unwrap(), added);
    assert_eq!(remove(&added).unwrap(), text);
    added
}

#[test]
fn the_files_that_are_met_get_a_section_at_their_end() {
    assert_eq!(added("version = 2\n"), format!("version = 2\n\n{SECTION_2}"));
    assert_eq!(added(DEBIAN), format!("{DEBIAN}\n{SECTION_2}"));
    assert_eq!(added(DEFAULT_1), format!("{DEFAULT_1}\n{SECTION_2}"));
    assert_eq!(added("version = 3\n"), format!("version = 3\n\n{}", section_3()));
    assert_eq!(added(DEFAULT_2), format!("{DEFAULT_2}\n{}", section_3()));
    let marked = "\u{feff}version = 2\n";
    assert_eq!(added(marked), format!("{marked}\n{SECTION_2}"));
    let windows = DEBIAN.replace('\n', "\r\n");
    assert_eq!(added(&windows), format!("{DEBIAN}\n{SECTION_2}").replace('\n', "\r\n"));
}

#[test]
fn a_file_that_says_nothing_gets_a_version() {
    for text in ["", "\n", "# nothing\n", "# no end", "# a\n\n# b\n"] {
        for (version, section) in [(2, SECTION_2.to_owned()), (3, section_3())] {
            let added = add(text, || version).unwrap();
            assert!(added.starts_with(text), "{added}");
            assert!(added.trim_end().ends_with(section.trim_end()), "{added}");
            assert_eq!(values(&added).unwrap()["version"], version);
            assert_eq!(add(&added, asked).unwrap(), added);
            assert_eq!(remove(&added).unwrap(), text);
            // A version that something else needs meanwhile stays.
            let more = format!("{added}\n[debug]\nlevel = \"info\"\n");
            assert!(
                values(&remove(&more).unwrap()).unwrap()["version"].is_number(),
                "{more}"
            );
        }
    }
    assert_eq!(remove("").unwrap(), "");
}

#[test]
fn dotted_keys_stay_and_a_section_is_added() {
    let root = "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.runtime_type = \"r\"\n";
    assert_eq!(added(root), format!("{root}\n{SECTION_2}"));
    let below = "version = 2\n[plugins]\n\"io.containerd.grpc.v1.cri\".containerd.snapshotter = \"native\"\n[debug]\na.b = 1\nc = 2\na.d = 3\n";
    assert_eq!(added(below), format!("{below}\n{SECTION_2}"));
}

#[test]
fn tables_in_braces_are_extended_where_they_are() {
    let runtime = "{ runtime_type = \"io.containerd.husk.v2\", privileged_without_host_devices = true, \
                   pod_annotations = [\"dev.husk.*\"], container_annotations = [\"dev.husk.*\"] }";
    let with = |containerd: &str| {
        format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ncontainerd = {containerd} # mine\na = 1\n")
    };
    for (before, after) in [
        ("{}", "{runtimes.husk = X}"),
        ("{ }", "{runtimes.husk = X }"),
        ("{ runtimes = {} }", "{ runtimes = {husk = X} }"),
        (
            "{ runtimes = { runc = { t = 'a' } }, s = 1 }",
            "{ runtimes = { runc = { t = 'a' }, husk = X }, s = 1 }",
        ),
        (
            "{ runtimes.runc.t = 'a' }",
            "{ runtimes.runc.t = 'a', runtimes.husk = X }",
        ),
        ("{ s = [1, 2] }", "{ s = [1, 2], runtimes.husk = X }"),
    ] {
        assert_eq!(added(&with(before)), with(&after.replace('X', runtime)), "{before}");
    }
    let all = "version = 3\nplugins = {}\n";
    assert!(added(all).contains("plugins = {\"io.containerd.cri.v1.runtime\".containerd.runtimes.husk = {"));
}

#[test]
fn what_somebody_wrote_is_taken_out_as_well() {
    let path = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes";
    let kept = format!("version = 2\n[{path}.runc]\nruntime_type = \"r\"\n\n[debug]\nlevel = \"info\"\n");
    let header = format!("[{path}.runc]\n");
    for own in [
        // Options below, something between, and more settings.
        format!(
            "[{path}.husk]\nruntime_type = \"io.containerd.husk.v2\"\nsnapshotter = \"native\"\n\n  [{path}.husk.options]\n  cpus = 2\n"
        ),
        format!("{path}.husk = {{ runtime_type = \"io.containerd.husk.v2\" }}\n"),
        format!("{path}.husk.runtime_type = \"io.containerd.husk.v2\"\n{path}.husk.options = [\n  1,\n  2,\n]\n"),
    ] {
        let text = kept.replace(&header, &format!("{own}{header}"));
        assert_eq!(add(&text, asked).unwrap(), text, "what is set stays");
        assert_eq!(remove(&text).unwrap(), kept, "{text}");
    }
    let first = "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes = { husk = { runtime_type = \"io.containerd.husk.v2\" }, a = {} }\n";
    assert!(
        remove(first).unwrap().ends_with(".runtimes = { a = {} }\n"),
        "{}",
        remove(first).unwrap()
    );
    // Both versions' places, whatever the file says of itself.
    let both = format!("version = 2\n\n{SECTION_2}\n{}", section_3());
    assert_eq!(remove(&both).unwrap(), "version = 2\n");
}

#[test]
fn what_cannot_be_changed_is_an_error_that_says_where() {
    let fails = |text: &str| match add(text, asked) {
        Err(error) => error.to_string(),
        Ok(text) => panic!("{text}"),
    };
    assert!(
        fails("version = 2\n  a b\n").contains("line 2 column "),
        "{}",
        fails("version = 2\n  a b\n")
    );
    for text in ["disabled_plugins = [\"cri\"]\n", "version = 1\n"] {
        assert!(fails(text).contains("version 1"), "{}", fails(text));
        // What is not there is not looked for.
        assert_eq!(remove(text).unwrap(), text);
    }
    assert!(fails("version = \"two\"\n").contains("\"two\""));
    assert!(fails("version = 2\nplugins = 1\n").contains("`plugins` is no table"));
    let list = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nruntimes = []\n";
    assert!(
        fails(list).contains(".containerd.runtimes` is no table"),
        "{}",
        fails(list)
    );
    let other = SECTION_2.replace("husk.v2", "other.v1");
    assert!(fails(&format!("version = 2\n{other}")).contains("io.containerd.other.v1"));
    assert!(matches!(remove(&other), Err(ContainerdError::Another(_))));
    let default = DEFAULT_1.replace("\"runc\"", "\"husk\"");
    let default = add(&default, asked).unwrap();
    assert!(matches!(remove(&default), Err(ContainerdError::Default)));
}

/// A file of containerd's, in one of the ways in which people write it.
fn file() -> impl Strategy<Value = String> {
    let plugin = prop_oneof![Just((2, CRI)), Just((3, CRI_RUNTIME))];
    let noise = prop::collection::vec(
        prop_oneof![
            Just("# a comment, with a comma and [brackets] {braces}"),
            Just(""),
            Just("  "),
            Just("[[debug]]\n  level = 'info' # why"),
            Just("[[stream]]\nx = [\n  1, # one\n  2,\n]"),
            Just("[[stream_processors.\"a.b\"]]\n\taccepts = [\"\"\"x\"\"\"]"),
        ],
        0..4,
    );
    let layout = prop_oneof![
        Just(""),
        Just("[plugins]"),
        Just("[plugins]\n  [plugins.'P']\n  a = 1"),
        Just("[plugins.\"P\".containerd]\n  default_runtime_name = \"runc\""),
        Just(
            "[plugins.\"P\".containerd.runtimes.runc]\n  runtime_type = \"r\"\n[plugins.\"P\".containerd.runtimes.runc.options]\n a = 1"
        ),
        Just("[plugins.\"P\".containerd.runtimes.husky]\n  runtime_type = \"r\""),
        Just("[plugins]\n\"P\".containerd.runtimes.runc.runtime_type = 'r'"),
        Just("[plugins.\"P\"]\ncontainerd = { runtimes = { runc = { a = '{,' } } } # {"),
        Just("[plugins.\"P\".containerd]\nruntimes = {}"),
        Just("[plugins.\"P\".containerd]\nruntimes = { runc.a = 1, }"),
    ];
    let end = prop_oneof![Just(""), Just("\n"), Just("\n\n"), Just("  # end"), Just("\n  ")];
    let noise_behind = noise.clone();
    (plugin, noise, layout, noise_behind, end, any::<bool>()).prop_map(
        |((version, plugin), noise, layout, behind, end, windows)| {
            let mut parts = vec![format!("version = {version}")];
            parts.extend(noise.into_iter().map(str::to_owned));
            parts.push(layout.replace('P', plugin));
            parts.extend(behind.into_iter().map(str::to_owned));
            let text = format!("{}{end}", parts.join("\n"));
            if windows { text.replace('\n', "\r\n") } else { text }
        },
    )
}

proptest! {
    #[test]
    fn install_and_undo_give_the_same_bytes(text in file()) {
        prop_assert!(values(&text).is_ok(), "{}", text);
        let added = add(&text, asked).unwrap_or_else(|error| panic!("{error} in\n{text}"));
        prop_assert_ne!(&added, &text);
        prop_assert_eq!(&add(&added, asked).unwrap(), &added);
        prop_assert_eq!(remove(&added).unwrap(), text);
    }
}
