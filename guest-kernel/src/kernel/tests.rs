//! The key, the cache and the lock, with a tree in which make does next to nothing.

use super::*;
use crate::fragment::Fragment;

struct Setup {
    directory: tempfile::TempDir,
    source: Source,
    config: Config,
    toolchain: Toolchain,
}

/// A Makefile that stands in for the kernel's: it copies the wanted options and takes
/// an ELF that is ready, counting its runs.
const MAKEFILE: &str = r#"
allnoconfig:
	cp "$(KCONFIG_ALLCONFIG)" $(O)/.config
	mkdir -p $(O)/include/config
	echo 6.12.1-test > $(O)/include/config/kernel.release
vmlinux:
	echo run >> $(RUNS)
	test -z "$(FAIL)" || { echo "  CC      broken.o"; echo "broken.c:1: error"; exit 1; }
	cp $(ELF) $(O)/vmlinux
	echo 0 T start > $(O)/System.map
"#;

fn config(text: &str) -> Config {
    Config::merge(&[Fragment {
        name: "t.config".to_owned(),
        text: text.to_owned(),
    }])
    .unwrap()
}

impl Setup {
    fn new(elf: &Path, fail: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("linux");
        fs::create_dir(&tree).unwrap();
        let variables = format!(
            "RUNS = {}\nELF = {}\nFAIL = {}\n",
            directory.path().join("runs").display(),
            elf.display(),
            if fail { "yes" } else { "" }
        );
        fs::write(tree.join("Makefile"), variables + MAKEFILE).unwrap();
        let tarball = directory.path().join("linux.tar");
        let tar = Command::new("tar")
            .args(["--create", "--file"])
            .arg(&tarball)
            .arg("--directory")
            .arg(directory.path())
            .arg("linux")
            .status();
        assert!(tar.unwrap().success());
        Self {
            source: Source::of_tarball(&tarball, None).unwrap(),
            config: config("CONFIG_A=y\nCONFIG_B=y\n"),
            toolchain: Toolchain {
                compiler: "gcc 1".to_owned(),
                linker: "ld 1".to_owned(),
            },
            directory,
        }
    }

    fn recipe(&self) -> Recipe<'_> {
        Recipe {
            cache: self.directory.path(),
            source: &self.source,
            patches: &[],
            config: &self.config,
            toolchain: &self.toolchain,
            jobs: 1,
            keep: false,
        }
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.directory.path().join("runs"))
            .unwrap_or_default()
            .lines()
            .count()
    }

    fn left_behind(&self) -> Vec<String> {
        fs::read_dir(self.directory.path().join("guest-kernel"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lock" && *name != self.recipe().key())
            .collect()
    }
}

/// Assembles and links an object that has a PVH note, or has not.
fn elf(directory: &Path, with_note: bool) -> PathBuf {
    let note = ".section .note.pvh,\"a\",@note\n.long 4, 8, 18\n.asciz \"Xen\"\n.quad 0x200000\n";
    let source = directory.join("e.s");
    let text = format!(".globl _start\n_start: hlt\n{}", if with_note { note } else { "" });
    fs::write(&source, text).unwrap();
    let (object, elf) = (directory.join("e.o"), directory.join("e"));
    let run = |program: &str, from: &Path, to: &Path| {
        assert!(
            Command::new(program)
                .arg(from)
                .arg("-o")
                .arg(to)
                .status()
                .unwrap()
                .success()
        );
    };
    run("as", &source, &object);
    run("ld", &object, &elf);
    elf
}

#[test]
fn a_kernel_is_built_once_and_then_found() {
    let work = tempfile::tempdir().unwrap();
    let setup = Setup::new(&elf(work.path(), true), false);
    let built = setup.recipe().obtain(&|_| {}).unwrap();
    assert_eq!(built.info.release, "6.12.1-test");
    assert_eq!(built.info.options_yes, 2);
    assert_eq!(built.info.elf_size, fs::metadata(built.elf()).unwrap().len());
    let mut files: Vec<String> = fs::read_dir(&built.directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["System.map", "build.log", "config", "kernel.json", "vmlinux"]);
    assert_eq!(setup.left_behind(), Vec::<String>::new());

    let found = setup.recipe().obtain(&|line| panic!("built again: {line}")).unwrap();
    assert_eq!(found.info, built.info);
    assert_eq!(setup.runs(), 1);
}

#[test]
fn builds_at_once_do_it_once() {
    let work = tempfile::tempdir().unwrap();
    let setup = Setup::new(&elf(work.path(), true), false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| setup.recipe().obtain(&|_| {}).unwrap());
        }
    });
    assert_eq!(setup.runs(), 1);
}

#[test]
fn a_damaged_entry_is_built_again() {
    let work = tempfile::tempdir().unwrap();
    let setup = Setup::new(&elf(work.path(), true), false);
    let kernel = setup.recipe().obtain(&|_| {}).unwrap();
    fs::write(kernel.directory.join("kernel.json"), "{").unwrap();
    assert_eq!(setup.recipe().obtain(&|_| {}).unwrap().info, kernel.info);
    assert_eq!(setup.runs(), 2);
}

#[test]
fn a_failing_build_shows_its_log_and_caches_nothing() {
    let work = tempfile::tempdir().unwrap();
    let setup = Setup::new(&elf(work.path(), true), true);
    let error = setup.recipe().obtain(&|_| {}).unwrap_err().to_string();
    assert!(error.contains("compiling the kernel failed"), "{error}");
    assert!(error.contains("broken.c:1: error"), "{error}");
    assert!(
        !setup
            .directory
            .path()
            .join("guest-kernel")
            .join(setup.recipe().key())
            .exists()
    );
}

#[test]
fn a_kernel_without_pvh_entry_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let setup = Setup::new(&elf(work.path(), false), false);
    let error = setup.recipe().obtain(&|_| {}).unwrap_err();
    assert!(matches!(error, KernelError::Elf(ElfError::NoPvhNote)), "{error}");
}

#[test]
fn an_option_that_is_not_honoured_fails_before_anything_is_compiled() {
    let work = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(&elf(work.path(), true), false);
    // A tree whose configuration loses an option.
    let tree = setup.directory.path().join("linux");
    let makefile = fs::read_to_string(tree.join("Makefile")).unwrap();
    let losing = makefile.replace(
        "cp \"$(KCONFIG_ALLCONFIG)\"",
        "grep -v CONFIG_B \"$(KCONFIG_ALLCONFIG)\" >",
    );
    fs::write(tree.join("Makefile"), losing).unwrap();
    let tar = Command::new("tar")
        .args(["--create", "--file"])
        .arg(&setup.source.tarball)
        .arg("--directory")
        .arg(setup.directory.path())
        .arg("linux")
        .status();
    assert!(tar.unwrap().success());
    setup.source = Source::of_tarball(&setup.source.tarball, None).unwrap();
    let error = setup.recipe().obtain(&|_| {}).unwrap_err().to_string();
    assert!(error.contains("t.config:2: CONFIG_B: wanted y, got nothing"), "{error}");
    assert_eq!(setup.runs(), 0);
}

fn release_patch(from: &str, to: &str, needed: bool) -> Patch {
    let text = format!(
        "Why.\n\n--- a/Makefile\n+++ b/Makefile\n@@ -7,1 +7,1 @@\n\
         -\techo {from} > $(O)/include/config/kernel.release\n\
         +\techo {to} > $(O)/include/config/kernel.release\n"
    );
    Patch {
        name: "test.patch",
        text: text.leak(),
        needed,
    }
}

#[test]
fn patches_are_applied() {
    let work = tempfile::tempdir().unwrap();
    let setup = Setup::new(&elf(work.path(), true), false);
    let patches = [
        release_patch("6.12.1-test", "6.12.2-test", true),
        release_patch("6.12.2-test", "6.12.3-test", false),
    ];
    let kernel = Recipe {
        patches: &patches,
        ..setup.recipe()
    }
    .obtain(&|_| {})
    .unwrap();
    assert_eq!(kernel.info.release, "6.12.3-test");
}

#[test]
fn a_patch_that_does_not_apply_fails_the_build_if_it_is_needed() {
    let work = tempfile::tempdir().unwrap();
    let setup = Setup::new(&elf(work.path(), true), false);
    let stale = [release_patch("6.12.9", "6.12.10", true)];
    let error = Recipe {
        patches: &stale,
        ..setup.recipe()
    }
    .obtain(&|_| {})
    .unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("unpacking and patching the kernel's source failed"),
        "{error}"
    );
    assert!(error.contains("FAILED at 7"), "{error}");

    let said = std::cell::RefCell::new(String::new());
    let stale = [release_patch("6.12.9", "6.12.10", false)];
    let recipe = Recipe {
        patches: &stale,
        ..setup.recipe()
    };
    let kernel = recipe.obtain(&|line| said.borrow_mut().push_str(line)).unwrap();
    assert_eq!(kernel.info.release, "6.12.1-test");
    assert!(
        said.borrow().contains("test.patch no longer applies"),
        "{}",
        said.borrow()
    );
}

#[test]
fn the_key_changes_with_what_decides_and_with_nothing_else() {
    let work = tempfile::tempdir().unwrap();
    let setup = Setup::new(&elf(work.path(), true), false);
    let key = setup.recipe().key();
    assert_eq!(key.len(), 16);

    let same = config("# another comment\nCONFIG_B=y\n\nCONFIG_A=y\n");
    let elsewhere = Path::new("/elsewhere");
    let recipe = Recipe {
        config: &same,
        jobs: 7,
        keep: true,
        cache: elsewhere,
        ..setup.recipe()
    };
    assert_eq!(recipe.key(), key);

    let other_config = config("CONFIG_A=y\n# CONFIG_B is not set\n");
    let mut other_source = setup.source.clone();
    other_source.sha256 = "0".repeat(64);
    let other_gcc = Toolchain {
        compiler: "gcc 2".to_owned(),
        ..setup.toolchain.clone()
    };
    let other_ld = Toolchain {
        linker: "ld 2".to_owned(),
        ..setup.toolchain.clone()
    };
    let one_patch = [release_patch("a", "b", true)];
    let other_patch = [release_patch("a", "c", true)];
    let keys = [
        Recipe {
            patches: &one_patch,
            ..setup.recipe()
        }
        .key(),
        Recipe {
            patches: &other_patch,
            ..setup.recipe()
        }
        .key(),
        Recipe {
            config: &other_config,
            ..setup.recipe()
        }
        .key(),
        Recipe {
            source: &other_source,
            ..setup.recipe()
        }
        .key(),
        Recipe {
            toolchain: &other_gcc,
            ..setup.recipe()
        }
        .key(),
        Recipe {
            toolchain: &other_ld,
            ..setup.recipe()
        }
        .key(),
    ];
    for (index, other) in keys.iter().enumerate() {
        assert_ne!(*other, key, "{index}");
        assert_eq!(keys.iter().filter(|one| *one == other).count(), 1, "{index}");
    }
}
