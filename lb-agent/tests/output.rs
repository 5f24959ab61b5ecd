//! Whoever reads what the agent says may go away, or have no room: that is no reason to stop.

use std::{fs::File, process::Command};

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
