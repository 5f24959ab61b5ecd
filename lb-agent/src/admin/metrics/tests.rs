use super::*;

const MS: Duration = Duration::from_millis(10);

/// What a real kube-proxy v1.36 (nftables) exposes after the same calls, without the values.
const KUBE_PROXY: &str = include_str!("kube-proxy.txt");

/// The calls that are behind [`KUBE_PROXY`].
fn metrics() -> Metrics {
    let metrics = Metrics::new().unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_275_300_250);
    let v4 = &[Family::V4];
    metrics.queued(now, v4);
    metrics.sync_finished(SyncKind::Full, MS, now, v4);
    metrics.sync_finished(SyncKind::Partial, MS, now, v4);
    metrics.network_programming(Family::V4, MS * 30);
    metrics.no_local(Traffic::Internal, Family::V4, 1);
    metrics.looked_for_stale_flows(MS, &[Family::V4]);
    metrics.stale_flows(Family::V4, 1);
    metrics.nftables_synced(Family::V4, 7, true);
    metrics.probe_answered(Probe::Healthz, 200);
    metrics.probe_answered(Probe::Healthz, 503);
    metrics.probe_answered(Probe::Livez, 200);
    metrics.probe_answered(Probe::Livez, 503);
    metrics
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|other| other == line), "{line}\n{text}");
}

/// Names, types, help, labels and buckets are kube-proxy's.
#[test]
fn as_kube_proxy_names_them() {
    let text = metrics().text().unwrap();
    let series: Vec<_> = text
        .lines()
        .filter(|line| line.contains("kubeproxy_"))
        .map(|line| match line.strip_prefix('#') {
            Some(_) => line,
            None => line.rsplit_once(' ').unwrap().0,
        })
        .collect();
    let expected: Vec<_> = KUBE_PROXY.lines().collect();
    let at = series.iter().zip(&expected).find(|(one, other)| one != other);
    assert_eq!(at, None);
    assert_eq!(series.len(), expected.len());
}

#[test]
fn values() {
    let metrics = metrics();
    metrics.sync_failed(SyncKind::Full, MS, &[Family::V4, Family::V6]);
    metrics.endpoint_changes(3, 5);
    metrics.endpoint_changes(0, 1);
    metrics.service_changes(2, 2);
    metrics.no_local(Traffic::External, Family::V6, 4);
    metrics.sockets_destroyed(EndReason::Stale, 7);
    metrics.map_use(Map::Services, 10, 65_536);
    metrics.map_use(Map::Backends, 0, 262_144);
    metrics.map_full(Map::Backends);
    metrics.socket_storage("more_flows", 8192);
    metrics.nftables_synced(Family::V6, 9, false);
    metrics.nftables_repaired(Family::V6);
    metrics.datapath(true);
    let text = metrics.text().unwrap();
    for line in [
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 1795275300.25",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1795275300.25",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.008\"} 0",
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.016\"} 3",
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 6",
        "kubeproxy_sync_proxy_rules_service_changes_pending 2",
        "kubeproxy_sync_proxy_rules_service_changes_total 2",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 4",
        "kubeproxy_proxy_livez_total{code=\"503\"} 1",
        "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 0",
        "socklb_nftables_elements{ip_family=\"IPv4\"} 7",
        "socklb_nftables_elements{ip_family=\"IPv6\"} 9",
        "socklb_nftables_repairs_total{ip_family=\"IPv6\"} 1",
        "socklb_sync_failures_total 1",
        "socklb_sockets_destroyed_total{reason=\"stale\"} 7",
        "socklb_map_entries{map=\"services\"} 10",
        "socklb_map_capacity{map=\"backends\"} 262144",
        "socklb_map_full_total{map=\"backends\"} 1",
        "socklb_socket_storage_bytes{map=\"more_flows\"} 8192",
        "socklb_datapath_healthy 1",
    ] {
        has(&text, line);
    }
}

/// The classic format: a type for each name, no `# EOF`, no time stamps, a newline at the end.
#[test]
fn the_text_is_the_classic_format() {
    let text = metrics().text().unwrap();
    assert!(text.ends_with('\n') && !text.contains("EOF"));
    let mut typed = "";
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            typed = declared.split_once(' ').unwrap().0;
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(series.starts_with(typed), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
