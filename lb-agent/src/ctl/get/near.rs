//! What to say of a target that is not there.

use lb_core::dump::{self, Entry};

use super::place;
use crate::ctl::{
    cli::Get,
    target::{ServiceName, Target},
};

/// What is missing, and the near misses.
pub(super) fn not_found(get: &Get, all: &[Entry<'_>], target: &Target) -> String {
    let near = near(all, target);
    let hint =
        if near.is_empty() { String::new() } else { format!("; there is {}", near.join(", ")) };
    format!("`{target}` not found{}{hint}", place(get))
}

/// How many near misses are named.
const NEAR: usize = 5;

/// The same name in another namespace or with other ports; the same address with another port, or
/// as a backend.
fn near(all: &[Entry<'_>], target: &Target) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for entry in all {
        let Some(port) = entry.port else { continue };
        let text = match target {
            Target::Name(ServiceName { name, .. }) if **name == *port.service.name => {
                port.to_string()
            }
            Target::Address(addr) if addr.is_host(entry.key) => {
                format!("{} ({port})", dump::frontend_text(entry.key))
            }
            Target::Address(addr) if entry.backends().iter().any(|peer| addr.is_at(*peer)) => {
                format!("a backend of {port} at this address")
            }
            _ => continue,
        };
        if !found.contains(&text) {
            if found.len() == NEAR {
                found.push("...".to_owned());
                break;
            }
            found.push(text);
        }
    }
    found
}
