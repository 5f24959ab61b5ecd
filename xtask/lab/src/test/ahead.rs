//! What later layers need and takes minutes of all CPUs is built while tests of earlier ones wait.

use std::{
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::Result;
use tools::{
    exec::myself,
    setup::{self, Scope},
};

/// `cargo xtask …`, one after the other.
const TASKS: [[&str; 2]; 5] = [
    ["kube", "cluster"],
    ["image", "pods"],
    ["image", "socklb"],
    ["image", "load"],
    ["kube", "e2e"],
];

/// Builds beside the tests, once begun.
#[derive(Default)]
pub(super) struct Ahead(Option<JoinHandle<()>>);

impl Ahead {
    /// Begins, behind all else that wants to run, once all that it `needs` is installed: nothing else may
    /// be at that. What fails is built again, and told, by the layer that needs it.
    pub(super) fn begin(&mut self, needs: &[Scope]) -> Result<()> {
        setup::ensure(needs)?;
        let exe = myself()?;
        println!("built meanwhile: {}", TASKS.map(|words| words.join(" ")).join(", "));
        self.0 = Some(thread::spawn(move || {
            for words in TASKS {
                let mut task = Command::new("nice");
                task.args(["-n", "19"]).arg(&exe).args(words).stdout(Stdio::null());
                if !task.status().is_ok_and(|status| status.success()) {
                    return;
                }
            }
        }));
        Ok(())
    }

    /// Waits for what was begun.
    pub(super) fn end(&mut self) {
        if let Some(thread) = self.0.take() {
            // It does not panic; if it did, the layer that needs it builds it.
            let _ = thread.join();
        }
    }
}
