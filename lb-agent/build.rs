//! Puts the BPF object into `OUT_DIR/socklb-bpf`: `SOCKLB_BPF_OBJECT=FILE` as it is, or else built
//! from `lb-ebpf` with the pinned nightly.

#[path = "../xtask/tools/src/pins.rs"]
#[expect(dead_code, reason = "only one of the pins matters here")]
#[expect(unreachable_pub, reason = "what is a module here is part of a library elsewhere")]
mod pins;

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use aya_build::{Package, Toolchain};

const OBJECT: &str = "SOCKLB_BPF_OBJECT";

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed={OBJECT}");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    if let Some(object) = env::var_os(OBJECT) {
        let object = PathBuf::from(object);
        // Build scripts run in their package, wherever cargo was started.
        ensure!(object.is_absolute(), "{OBJECT}={}: give an absolute path", object.display());
        println!("cargo::rerun-if-changed={}", object.display());
        fs::copy(&object, out.join("socklb-bpf"))
            .with_context(|| format!("{OBJECT}={}", object.display()))?;
        return Ok(());
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets it")?);
    let ebpf = root.join("../lb-ebpf");
    let features: &[&str] =
        if env::var_os("CARGO_FEATURE_BPF_LOG").is_some() { &["log"] } else { &[] };
    let package = Package {
        name: "lb-ebpf",
        root_dir: ebpf.to_str().context("the path of the work tree is not UTF-8")?,
        features,
        ..Package::default()
    };
    environment();
    aya_build::build_ebpf([package], Toolchain::Custom(pins::NIGHTLY)).context(
        "the BPF programs need their own toolchain: run `cargo xtask setup` once, or set \
         SOCKLB_BPF_OBJECT to a prebuilt object",
    )
}

/// aya-build takes no environment for the cargo that it starts; that inherits ours.
#[expect(unsafe_code, reason = "the environment is shared by all threads")]
fn environment() {
    let environment = [
        // aya-build passes on what the inner cargo says as warnings; only real ones are of interest.
        ("CARGO_TERM_QUIET", "true"),
        // The object is the same wherever it is built: it names sources in its line information.
        ("CARGO_UNSTABLE_TRIM_PATHS", "true"),
        ("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all"),
        // Many small units: functions are not inlined then, and the verifier refuses the programs.
        ("CARGO_INCREMENTAL", "0"),
        // Of user space; lb-ebpf's own profile says what is good for it.
        ("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only"),
        ("CARGO_PROFILE_RELEASE_STRIP", "none"),
    ];
    for (name, value) in environment {
        // SAFETY: nothing else runs in this process yet.
        unsafe { env::set_var(name, value) };
    }
}
