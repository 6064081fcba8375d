//! Compiles the kernel programs into Rust skeletons and expands the list of reasons into Rust.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use libbpf_cargo::SkeletonBuilder;

const PROGRAMS: [&str; 2] = ["xdp_lb", "xdp_peer"];
const CLANG_ARGS: [&str; 7] =
    ["-Iinclude", "-Isrc/bpf", "-mcpu=v3", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"];
const OLDEST_CLANG: u32 = 14;
const NEWEST_CLANG: u32 = 30;

/// The expansion of `LB_REASONS` is Rust: the header stays the only list.
const REASONS: &str = r#"
#include "lb_counters.h"
#define LB_RUST_SENT Sent
#define LB_RUST_STACK Stack
#define LB_RUST_PASS Pass
#define LB_RUST_DROP Drop
#define LB_RUST_ERROR Error
#define X(class, number, c, text, help) Reason::new(Class::LB_RUST_##class, number, #text, help),
=====
&[ LB_REASONS(X) ]
"#;

fn main() {
    if let Err(error) = build() {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}

fn build() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo did not set OUT_DIR")?);
    let clang = find_clang()?;
    for program in PROGRAMS {
        SkeletonBuilder::new()
            .source(format!("src/bpf/{program}.bpf.c"))
            .clang(&clang)
            .clang_args(CLANG_ARGS)
            .build_and_generate(out.join(format!("{program}.skel.rs")))
            .with_context(|| {
                format!("could not compile src/bpf/{program}.bpf.c with {}", clang.to_string_lossy())
            })?;
    }
    expand_reasons(&clang, &out)?;
    mark_root();
    // For tests that compile a program of their own.
    println!("cargo::rustc-env=XDP_LB_CLANG={}", clang.to_string_lossy());
    println!("cargo::rustc-env=XDP_LB_CLANG_ARGS={}", CLANG_ARGS.join(" "));
    println!("cargo::rustc-env=XDP_LB_CLANG_VERSION={}", version_of(&clang)?);
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    println!("cargo::rerun-if-changed=src/bpf");
    println!("cargo::rerun-if-changed=include");
    println!("cargo::rerun-if-changed=build.rs");
    Ok(())
}

/// Tests that need root are ignored, with that reason, when somebody else builds them.
fn mark_root() {
    println!("cargo::rustc-check-cfg=cfg(root)");
    if fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) {
        println!("cargo::rustc-cfg=root");
    }
    for variable in ["USER", "LOGNAME", "SUDO_USER"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
}

/// `$BPF_CLANG`, clang, or the newest clang-NN: Debian's clang-19 package brings no plain `clang`.
fn find_clang() -> Result<OsString> {
    if let Some(clang) = env::var_os("BPF_CLANG") {
        if !works(&clang) {
            bail!(
                "BPF_CLANG={} cannot be run: set it to a clang of version {OLDEST_CLANG} or newer",
                clang.to_string_lossy()
            );
        }
        return Ok(clang);
    }
    std::iter::once(OsString::from("clang"))
        .chain((OLDEST_CLANG..=NEWEST_CLANG).rev().map(|version| format!("clang-{version}").into()))
        .find(works)
        .context(
            "no clang was found to compile the kernel programs: install it (Debian: apt-get install clang, \
             Fedora: dnf install clang, or `make deps`), or set BPF_CLANG to its path",
        )
}

/// The major version: the first number after "version" of what it says of itself, whoever packaged it.
fn version_of(clang: &OsString) -> Result<String> {
    let output = Command::new(clang).arg("--version").output().context("could not run clang")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let (_, version) =
        said.split_once("version ").with_context(|| format!("clang --version said no version: {said}"))?;
    Ok(version.chars().take_while(char::is_ascii_digit).collect())
}

fn works(clang: &OsString) -> bool {
    Command::new(clang).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn expand_reasons(clang: &OsString, out: &Path) -> Result<()> {
    let source = out.join("reasons.h");
    fs::write(&source, REASONS).with_context(|| format!("could not write {}", source.display()))?;
    let output = Command::new(clang)
        .args(["-E", "-P", "-x", "c", "-Iinclude"])
        .arg(&source)
        .output()
        .with_context(|| format!("could not run {}", clang.to_string_lossy()))?;
    if !output.status.success() {
        bail!("could not expand include/lb_counters.h: {}", String::from_utf8_lossy(&output.stderr));
    }
    let expanded = String::from_utf8(output.stdout).context("include/lb_counters.h is not UTF-8")?;
    let (_, reasons) = expanded.split_once("=====").context("include/lb_counters.h expanded to nothing")?;
    let target = out.join("reasons.rs");
    fs::write(&target, reasons).with_context(|| format!("could not write {}", target.display()))
}
