//! The troubles told so far: each is logged when it appears and when it is over, not at each retry.

use std::collections::BTreeMap;

use crate::{model::ObjectRef, pipeline::Report};

/// How many Services are named one by one when many have the same trouble.
const NAMED: usize = 5;

#[derive(Default)]
pub(super) struct Troubles {
    failed: BTreeMap<ObjectRef, String>,
    lost: BTreeMap<ObjectRef, String>,
    addresses: Option<String>,
}

impl Troubles {
    pub(super) fn tell(&mut self, report: &Report) {
        let failed: BTreeMap<_, _> =
            report.failed.iter().map(|(name, error)| (name.clone(), error.to_string())).collect();
        let new: Vec<_> =
            failed.iter().filter(|(name, _)| !self.failed.contains_key(name)).collect();
        for (service, error) in new.iter().take(NAMED) {
            tracing::error!(%service, "not written, what was there stays: {error}");
        }
        if let Some(more) = new.len().checked_sub(NAMED).filter(|more| *more > 0) {
            tracing::error!("{more} more Services not written; {} in all", failed.len());
        }
        let over = self.failed.keys().filter(|name| !failed.contains_key(name)).count();
        if over > 0 {
            tracing::info!(services = over, remaining = failed.len(), "written after all");
        }
        self.failed = failed;

        let addresses = report.addresses.as_ref().map(ToString::to_string);
        if addresses != self.addresses {
            if let Some(error) = &addresses {
                tracing::error!("not all addresses are known to the programs: {error}");
            } else {
                tracing::info!("all addresses are known to the programs");
            }
            self.addresses = addresses;
        }

        // Whoever was looked at and is not among the losers has what it asks for.
        self.lost.retain(|service, _| {
            !report.looked_at.contains(service) || report.lost.contains_key(service)
        });
        for (service, lost) in &report.lost {
            let owners: Vec<_> =
                lost.iter().map(|lost| format!("{} ({})", lost.frontend, lost.owner)).collect();
            let text = owners.join(", ");
            if self.lost.get(service) != Some(&text) {
                let remedy = "give one of them another address or port";
                tracing::warn!(%service, remedy, "belongs to another Service: {text}");
                self.lost.insert(service.clone(), text);
            }
        }
    }
}
