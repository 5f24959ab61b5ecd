//! What a kube-proxy and the agent count of the same objects.

use super::beside::{Both, LIMIT, METRICS};
use crate::lab::{eventually, metrics::Metrics};

/// The metrics that dashboards know.
const KNOWN: &[&str] = &[
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "kubeproxy_sync_full_proxy_rules_duration_seconds",
    "kubeproxy_sync_partial_proxy_rules_duration_seconds",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    "kubeproxy_network_programming_duration_seconds",
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    "kubeproxy_sync_proxy_rules_service_changes_total",
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "kubeproxy_proxy_healthz_total",
    "kubeproxy_proxy_livez_total",
    "kubeproxy_conntrack_reconciler_sync_duration_seconds",
    "kubeproxy_conntrack_reconciler_deleted_entries_total",
];

const SLICES: &str = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
const SERVICES: &str = "kubeproxy_sync_proxy_rules_service_changes_total";
const PENDING: [&str; 2] = [
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "kubeproxy_sync_proxy_rules_service_changes_pending",
];
/// What both must say at the end.
const SAME: [&str; 6] = [
    r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"}"#,
    r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"}"#,
    r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"}"#,
    r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="internal"}"#,
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "kubeproxy_sync_proxy_rules_service_changes_pending",
];

/// All metrics that dashboards know have the same help, type, labels and buckets, and what both count
/// is the same.
pub(super) fn the_same(both: &Both<'_>, before: &[Metrics; 2]) {
    let after = eventually(LIMIT, || {
        // The search for stale flows follows the sync.
        let all = metrics(both);
        let missing = |of: &Metrics| KNOWN.iter().find(|name| of.series(name).is_empty()).copied();
        match all.each_ref().map(missing) {
            [None, None] => Ok(all),
            missing => Err(format!("{missing:?}")),
        }
    });
    let [ours, theirs] = &after;
    for name in KNOWN {
        assert_eq!(ours.said(name), theirs.said(name));
        assert_eq!(ours.series(name), theirs.series(name));
    }

    let values = |of: &Metrics| SAME.map(|key| (key, of.count(key)));
    assert_eq!(values(ours), values(theirs));
    assert_eq!(values(ours).map(|(_, value)| value), [1, 1, 0, 0, 0, 0]);
    let grown = |key: &str| [0, 1].map(|i| after[i].count(key) - before[i].count(key));
    for (key, least) in [
        (SLICES, 7),
        (r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}"#, 5),
        (r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"}"#, 1),
    ] {
        assert_eq!(grown(key), [least, least], "{key}");
    }
    // Each family of kube-proxy counts it.
    assert_eq!(grown(SERVICES), [1, 2]);
    for probe in ["healthz", "livez"] {
        let codes = ["200", "503"];
        let key = |code| format!(r#"kubeproxy_proxy_{probe}_total{{code="{code}"}}"#);
        let [ours, theirs] = codes
            .map(|code| grown(&key(code)))
            .into_iter()
            .fold([0, 0], |sum, code| [sum[0] + code[0], sum[1] + code[1]]);
        assert!(ours > 4 && ours == theirs, "{probe}: {ours} and {theirs}");
    }
    for of in &after {
        let [synced, queued] = ["last", "last_queued"].map(|which| {
            let name = format!("kubeproxy_sync_proxy_rules_{which}_timestamp_seconds");
            of.value(&format!(r#"{name}{{ip_family="IPv4"}}"#))
        });
        assert!(synced >= queued && synced - queued < 10.0, "{synced}, {queued}");
    }
}

/// The metrics once both have heard of the same objects and have written what follows: each of them
/// lists Services and slices when it gets to it, and kube-proxy calls itself healthy before that.
pub(super) fn settled(both: &Both<'_>) -> [Metrics; 2] {
    eventually(LIMIT, || {
        let all = metrics(both);
        let seen = all.each_ref().map(|of| [SLICES, SERVICES].map(|name| of.count(name)));
        let [[our_slices, our_services], [their_slices, their_services]] = seen;
        // Each family of kube-proxy counts a Service.
        let same = our_slices == their_slices && 2 * our_services == their_services;
        let pending = |of: &Metrics| PENDING.iter().any(|name| of.count(name) > 0);
        if our_services > 0 && same && !all.iter().any(|of| pending(of) || !has_synced(of)) {
            Ok(all)
        } else {
            Err(format!(
                "slices and Services: {seen:?}; pending: {:?}",
                all.each_ref().map(pending)
            ))
        }
    })
}

/// The last sync is not older than what it was asked for.
fn has_synced(of: &Metrics) -> bool {
    ["IPv4", "IPv6"].iter().all(|family| {
        let [synced, queued] = ["last", "last_queued"].map(|which| {
            let name = format!("kubeproxy_sync_proxy_rules_{which}_timestamp_seconds");
            of.value_if_any(&format!(r#"{name}{{ip_family="{family}"}}"#)).unwrap_or(0.0)
        });
        synced > 0.0 && synced >= queued
    })
}

fn metrics(both: &Both<'_>) -> [Metrics; 2] {
    both.at(METRICS, true).map(Metrics::of)
}
