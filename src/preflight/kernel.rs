use std::fs;
use std::path::Path;

use super::privileges::Rights;
use super::{Finding, Remedy};
use crate::dataplane::{kernel_features, kernel_release};

const NAME: &str = "kernel";
const BTF: &str = "/sys/kernel/btf/vmlinux";
const JIT: &str = "net.core.bpf_jit_enable";
const JIT_PATH: &str = "/proc/sys/net/core/bpf_jit_enable";
/// The first release that is known to take the programs.
const OLDEST: (u32, u32) = (6, 1);

pub(super) fn check(rights: &Rights) -> Vec<Finding> {
    let features =
        if rights.can_load() { kernel_features().map_err(|error| error.to_string()) } else { Ok(vec![]) };
    let mut findings = judge(kernel_release().ok(), Path::new(BTF).exists(), &features);
    // Shown in the first network namespace only.
    if let Ok(jit) = fs::read_to_string(JIT_PATH) {
        findings.push(judge_jit(jit.trim()));
    }
    findings
}

fn judge(
    release: Option<(u32, u32)>,
    btf: bool,
    features: &Result<Vec<(&'static str, bool)>, String>,
) -> Vec<Finding> {
    const NEWER: &str = "run Linux 6.1 or newer, with BPF and XDP";
    let mut findings = Vec::new();
    if let Some((major, minor)) = release.filter(|release| *release < OLDEST) {
        findings.push(Finding::error(
            NAME,
            &format!("this is Linux {major}.{minor}, which is too old"),
            NEWER,
        ));
    }
    if !btf {
        let message = format!("{BTF} is missing: this kernel does not describe its types");
        let fix = "run a kernel with CONFIG_DEBUG_INFO_BTF=y and /sys mounted";
        findings.push(Finding::error("btf", &message, fix));
    }
    match features {
        Ok(features) => {
            let missing: Vec<&str> =
                features.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
            if !missing.is_empty() {
                let message = format!("this kernel lacks {}", missing.join(", "));
                findings.push(Finding::error(NAME, &message, NEWER));
            }
        }
        Err(error) => {
            let message = format!("could not ask the kernel what BPF programs may use: {error}");
            findings.push(Finding::warning(
                NAME,
                &message,
                "xdp-lb verify shows whether it takes the programs",
            ));
        }
    }
    if !findings.iter().any(|finding| finding.name == NAME) {
        let (major, minor) = release.unwrap_or(OLDEST);
        findings.push(Finding::ok(NAME, &format!("Linux {major}.{minor} has what the programs need")));
    }
    findings
}

fn judge_jit(value: &str) -> Finding {
    match value {
        "0" => Finding::mendable(
            "jit",
            &format!("{JIT} is 0: the kernel interprets the program, many times slower"),
            Remedy::sysctl(JIT, "1"),
        ),
        _ => Finding::ok("jit", &format!("the kernel compiles BPF programs ({JIT} = {value})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    #[test]
    fn kernels_are_judged() {
        let all = Ok(vec![("bpf_loop", true)]);
        let errors = |release, btf, features| {
            let findings = judge(Some(release), btf, &features);
            let is_error = |finding: &&Finding| finding.level == Level::Error;
            findings.iter().filter(is_error).map(|finding| finding.message.clone()).collect::<Vec<_>>()
        };
        assert!(errors((6, 1), true, all.clone()).is_empty());
        assert_eq!(errors((5, 15), true, all.clone()), ["this is Linux 5.15, which is too old"]);
        assert!(errors((6, 1), false, all)[0].contains(BTF));
        assert_eq!(errors((6, 1), true, Ok(vec![("bpf_loop", false)])), ["this kernel lacks bpf_loop"]);
        assert_eq!(judge(Some((6, 1)), true, &Err("no".into()))[0].level, Level::Warning);
    }

    #[test]
    fn an_interpreter_is_slow() {
        assert_eq!(judge_jit("0").fix.as_deref(), Some("sysctl -w net.core.bpf_jit_enable=1"));
        assert_eq!(judge_jit("1").level, Level::Ok);
    }
}
