//! Waiting, never for ever, and never without a reason in the end.

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Error, Result, bail};

const LINES: usize = 12;
/// Between two looks: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];

/// Why something is not so.
#[derive(Debug)]
pub enum Not {
    /// It may become so.
    Yet(String),
    /// And waiting does not help.
    Ever(String),
}

/// Who cannot look need not look again.
impl From<Error> for Not {
    fn from(error: Error) -> Self {
        Self::Ever(format!("{error:#}"))
    }
}

/// Repeats what does not work yet. The error says what was waited for, how it was at last, and what
/// the logs say.
pub fn until<T>(
    what: &str,
    limit: Duration,
    logs: &[&Path],
    mut check: impl FnMut() -> Result<T, Not>,
) -> Result<T> {
    let start = Instant::now();
    let [mut pause, longest] = PAUSES;
    loop {
        let (reason, over) = match check() {
            Ok(result) => return Ok(result),
            Err(Not::Yet(reason)) => (reason, start.elapsed() > limit),
            Err(Not::Ever(reason)) => (reason, true),
        };
        if over {
            let logs: String = logs.iter().map(|log| tail(log)).collect();
            let seconds = start.elapsed().as_secs();
            bail!("waited {seconds} s for {what}: {}\n{logs}", reason.trim());
        }
        sleep(pause);
        pause = longest.min(pause * 2);
    }
}

/// The end of a log, to be shown.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    let last: Vec<_> = last.iter().map(|line| format!("  | {line}")).collect();
    format!("  {}:\n{}\n", log.display(), last.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::{env, process::id};

    use super::*;

    #[test]
    fn who_waits_in_vain_learns_what_the_log_says() {
        let log = env::temp_dir().join(format!("socklb-wait-{}", id()));
        let lines: Vec<_> = (0..40).map(|i| format!("line {i}")).collect();
        fs::write(&log, lines.join("\n")).unwrap();
        let wait = |not: fn() -> Not| until::<()>("etcd", Duration::ZERO, &[&log], || Err(not()));
        let error = wait(|| Not::Yet("no answer".to_owned())).unwrap_err().to_string();
        assert!(error.starts_with("waited 0 s for etcd: no answer\n"), "{error}");
        assert!(error.contains("| line 28\n") && !error.contains("| line 27\n"), "{error}");
        wait(|| Not::Ever("it has ended".to_owned())).unwrap_err();
        fs::remove_file(&log).unwrap();
        let mut tries = 0;
        let third = || {
            tries += 1;
            if tries == 3 { Ok(tries) } else { Err(Not::Yet(String::new())) }
        };
        assert_eq!(until("three", Duration::from_secs(9), &[], third).unwrap(), 3);
    }
}
