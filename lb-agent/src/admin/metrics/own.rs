//! What kube-proxy does not count.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Result};

use super::make::Make;

#[derive(Debug)]
pub(super) struct Own {
    pub(super) sync_failures: IntCounter,
    pub(super) sockets_destroyed: IntCounterVec,
    pub(super) map_entries: IntGaugeVec,
    pub(super) map_capacity: IntGaugeVec,
    pub(super) map_full: IntCounterVec,
    pub(super) socket_storage: IntGaugeVec,
    pub(super) nftables_elements: IntGaugeVec,
    pub(super) nftables_repairs: IntCounterVec,
    pub(super) datapath_healthy: IntGauge,
    pub(super) processes_outside: IntGauge,
    pub(super) datapath_events: IntCounterVec,
}

impl Own {
    pub(super) fn new(make: &Make<'_>) -> Result<Self> {
        Ok(Self {
            sync_failures: make.counter(
                "socklb_sync_failures_total",
                "Syncs after which something was not written",
            )?,
            sockets_destroyed: make.counters(
                "socklb_sockets_destroyed_total",
                "Sockets that were woken with an error, to connect anew",
                &["reason"],
            )?,
            map_entries: make.gauges("socklb_map_entries", "Places in use in a map", &["map"])?,
            map_capacity: make.gauges("socklb_map_capacity", "Places that a map has", &["map"])?,
            map_full: make.counters(
                "socklb_map_full_total",
                "Services not written because a map had no place left",
                &["map"],
            )?,
            socket_storage: make.gauges(
                "socklb_socket_storage_bytes",
                "Kernel memory of what is remembered of live sockets; it counts as the agent's",
                &["map"],
            )?,
            nftables_elements: make.gauges(
                "socklb_nftables_elements",
                "Elements of the table for packets, but for the bonds of session affinity",
                &["ip_family"],
            )?,
            nftables_repairs: make.counters(
                "socklb_nftables_repairs_total",
                "Repairs of the table for packets, which somebody else had changed",
                &["ip_family"],
            )?,
            datapath_healthy: make.gauge(
                "socklb_datapath_healthy",
                "1 if the last check of the programs found no fault, else 0",
            )?,
            processes_outside: make.gauge(
                "socklb_processes_outside",
                "Processes of the node outside of the cgroup whose sockets are served",
            )?,
            datapath_events: make.counters(
                "socklb_datapath_events_total",
                "What the programs did other than to forward: connections refused, state not kept",
                &["event"],
            )?,
        })
    }
}
