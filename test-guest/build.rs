//! Links the guest by its own script, where it is built for the bare machine.

fn main() {
    println!("cargo::rerun-if-changed=guest.ld");
    println!("cargo::rerun-if-changed=src/boot.s");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "none") {
        let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-T{here}/guest.ld");
        println!("cargo::rustc-link-arg-bins=--no-pie");
        println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
    }
}
