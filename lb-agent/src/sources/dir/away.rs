//! The directory while it cannot be read: why, and what to do.

use std::{io, path::PathBuf, time::Instant};

use super::super::{Standstill, Standstills, lasting::Lasting};

/// A directory, and what was told of its absence.
pub(super) struct Away {
    path: PathBuf,
    told: Lasting,
}

impl Away {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, told: Lasting::default() }
    }

    /// It cannot be read, for this reason.
    pub(super) fn tell(&mut self, error: &io::Error, standstills: &Standstills) {
        let what = self.what(error);
        if self.told.is_due(&what, Instant::now()) {
            let remedy = self.remedy(error);
            tracing::error!(
                remedy,
                "{what}; what was read before stays in force, and lb-agent tries again"
            );
        }
        // Also if nothing is written: a hang that ended with this error is told as over.
        standstills.send_replace(Some(Standstill { what, hangs: false }));
    }

    /// It can be read. True if it could not.
    pub(super) fn end(&mut self, standstills: &Standstills) -> bool {
        let was_away = self.told.end();
        if was_away {
            tracing::info!(path = %self.path.display(), "the directory can be read now");
            standstills.send_replace(None);
        }
        was_away
    }

    /// The same for somebody who does not wait.
    pub(super) fn explain(&self, error: &io::Error) -> String {
        format!("{}; {}", self.what(error), self.remedy(error))
    }

    fn what(&self, error: &io::Error) -> String {
        format!("cannot read the directory {}: {error}", self.path.display())
    }

    fn remedy(&self, error: &io::Error) -> String {
        let path = self.path.display();
        match error.kind() {
            io::ErrorKind::NotFound => {
                format!(
                    "`mkdir {path}` and put the files there, or name another by --source dir:PATH"
                )
            }
            io::ErrorKind::NotADirectory => {
                "--source dir:PATH takes a directory: name the one that the files are in".to_owned()
            }
            io::ErrorKind::PermissionDenied => format!(
                "`chmod u+rx {path}`, and give it to the user that runs lb-agent, or name another by \
                 --source dir:PATH"
            ),
            _ => "repair it, or name another by --source dir:PATH".to_owned(),
        }
    }
}
