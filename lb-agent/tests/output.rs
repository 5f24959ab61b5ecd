//! Whoever reads what the agent says may go away, or have no room: that is no reason to stop.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unsafe_code, reason = "capabilities are dropped between fork and exec")]

use std::{
    fs::{File, Permissions},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_log_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("broken.yaml"), "kind: [").unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_lb-agent"))
        .args(["--dry-run", "--source"])
        .arg(format!("dir:{}", dir.path().display()))
        .env("SOCKLB_LOG", "debug")
        .stdout(std::process::Stdio::null())
        .stderr(File::options().write(true).open("/dev/full").unwrap())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

/// Escapes, line breaks, a one-byte CSI, a delete and an override of direction.
const HOSTILE: &str = "\u{1b}]0;x\u{7}\u{1b}[2J\n\r\t\u{9b}31m\u{7f}\u{202e}\u{2066}\u{2028}x";

/// Nothing that a terminal obeys, but for line breaks.
fn is_harmless(text: &str) -> bool {
    let harmful = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2066}'..='\u{2069}')
    };
    !text.contains(harmful)
}

/// Names of files, objects, fields and kinds, in files that are good, wrong or broken.
fn hostile(dir: &Path) {
    let escaped = serde_json::to_string(HOSTILE).unwrap();
    let files = [
        ("kind", format!(r#"{{"apiVersion": {escaped}, "kind": {escaped}}}"#)),
        (
            "service",
            format!(
                r#"{{"apiVersion": "v1", "kind": "Service",
                "metadata": {{"name": {escaped}, "namespace": {escaped}}},
                "spec": {{"clusterIP": {escaped}}}}}"#
            ),
        ),
        (
            "fields",
            format!(
                r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "a"}},
                "spec": {{"clusterIP": "10.96.0.1", "clusterIPs": [{escaped}],
                "externalIPs": [{escaped}], "loadBalancerSourceRanges": [{escaped}],
                "ports": [{{"name": {escaped}, "port": 80}},
                {{"name": "b", "port": 81, "protocol": {escaped}}}]}}}}"#
            ),
        ),
        (
            "slice",
            format!(
                r#"{{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {{"name": "a", "labels": {{"kubernetes.io/service-name": {escaped}}}}},
                "addressType": {escaped}}}"#
            ),
        ),
        (
            "node",
            format!(
                r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": {escaped}}},
                "status": {{"addresses": [{{"type": "InternalIP", "address": {escaped}}}]}}}}"#
            ),
        ),
        ("type", format!(r#"{{"apiVersion": "v1", "kind": "Node", "spec": {escaped}}}"#)),
        ("map", format!(r#"{{{escaped}: 1, "apiVersion": {{{escaped}: 1}}, "kind": "x"}}"#)),
        ("broken", format!("{{{HOSTILE}: [")),
        ("text", HOSTILE.to_owned()),
    ];
    for (name, text) in files {
        for end in ["json", "yaml"] {
            std::fs::write(dir.join(format!("{name}-{HOSTILE}.{end}")), &text).unwrap();
        }
    }
    std::fs::create_dir(dir.join(format!("{HOSTILE}.yaml"))).unwrap();
    std::os::unix::fs::symlink(HOSTILE, dir.join(format!("link-{HOSTILE}.yaml"))).unwrap();
}

#[test]
fn nothing_that_files_say_or_are_called_reaches_a_terminal_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join(format!("dir-{HOSTILE}"));
    std::fs::create_dir(&files).unwrap();
    hostile(&files);
    for format in ["text", "json"] {
        let output = Command::new(env!("CARGO_BIN_EXE_lb-agent"))
            .args(["--dry-run", "--log=debug", "--log-format", format, "--source"])
            .arg(format!("dir:{}", files.display()))
            .output()
            .unwrap();
        let (out, log) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
        let (out, log) = (out.unwrap(), log.unwrap());
        assert!(is_harmless(&out) && is_harmless(&log), "{format}: {out:?}\n{log:?}");
        // Each line is one of ours: what is in them begins none.
        for line in log.lines() {
            let begins = if format == "json" { "{\"timestamp\"" } else { "20" };
            assert!(line.starts_with(begins), "{format}: {line}");
            assert!(format == "text" || serde_json::from_str::<serde_json::Value>(line).is_ok());
        }
        for said in ["is no valid name", "service-", "broken-", "it is a directory", "skipped"] {
            assert!(log.contains(said), "{format}: nothing about {said}: {log}");
        }
    }
    // An error that ends the agent.
    let output = Command::new(env!("CARGO_BIN_EXE_lb-agent"))
        .args(["--dry-run", "--source=dir:/", "--bpffs"])
        .arg(dir.path().join(format!("nowhere-{HOSTILE}")))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("nowhere-") && is_harmless(&said), "{said:?}");
}

/// Nothing is waited for, and nothing but the error is said: cause, path and remedy.
#[test]
fn a_directory_that_cannot_be_read() {
    // CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root reads it all the same.
    const DAC_OVERRIDE: libc::c_ulong = 1;
    const DAC_READ_SEARCH: libc::c_ulong = 2;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("file"), "").unwrap();
    std::fs::create_dir(path("closed")).unwrap();
    let mode = |name: &str, mode| {
        std::fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
    };
    mode("closed", 0o000);
    let said = |name: &str| {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
        agent.args(["--dry-run", "--source"]).arg(format!("dir:{}", path(name).display()));
        // SAFETY: the closure makes system calls only. Who is not root has none of them to drop.
        unsafe {
            agent.pre_exec(|| {
                for capability in [DAC_OVERRIDE, DAC_READ_SEARCH] {
                    libc::prctl(libc::PR_CAPBSET_DROP, capability);
                }
                Ok(())
            })
        };
        let output = agent.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(text(&output.stdout), "");
        text(&output.stderr).replace(&dir.path().display().to_string(), "DIR")
    };
    assert_eq!(
        said("none"),
        "error: cannot read the directory DIR/none: No such file or directory (os error 2); \
         `mkdir DIR/none` and put the files there, or name another by --source dir:PATH\n"
    );
    assert_eq!(
        said("file"),
        "error: cannot read the directory DIR/file: Not a directory (os error 20); --source dir:PATH \
         takes a directory: name the one that the files are in\n"
    );
    assert_eq!(
        said("closed"),
        "error: cannot read the directory DIR/closed: Permission denied (os error 13); `chmod u+rx \
         DIR/closed`, and give it to the user that runs lb-agent, or name another by --source \
         dir:PATH\n"
    );
    mode("closed", 0o700);
}
