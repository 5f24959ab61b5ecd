//! kube-proxy's metrics: names, labels, buckets and help as Kubernetes v1.36 has them.

use prometheus::{
    GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Result,
    exponential_buckets, linear_buckets,
};

use super::make::Make;

const FAMILY: &[&str] = &["ip_family"];

#[derive(Debug)]
pub(super) struct KubeProxy {
    pub(super) sync: HistogramVec,
    pub(super) sync_full: HistogramVec,
    pub(super) sync_partial: HistogramVec,
    pub(super) last_sync: GaugeVec,
    pub(super) last_queued: GaugeVec,
    pub(super) programming: HistogramVec,
    pub(super) endpoints_pending: IntGauge,
    pub(super) endpoints_total: IntCounter,
    pub(super) services_pending: IntGauge,
    pub(super) services_total: IntCounter,
    pub(super) no_local: IntGaugeVec,
    pub(super) nftables_failures: IntCounterVec,
    pub(super) healthz: IntCounterVec,
    pub(super) livez: IntCounterVec,
    pub(super) reconcile: HistogramVec,
    pub(super) reconcile_deleted: IntCounterVec,
}

impl KubeProxy {
    pub(super) fn new(make: &Make<'_>) -> Result<Self> {
        // 1 ms to 16.4 s.
        let latency =
            |name, help| make.histograms(name, help, FAMILY, exponential_buckets(0.001, 2.0, 15)?);
        Ok(Self {
            sync: latency(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "[ALPHA] SyncProxyRules latency in seconds",
            )?,
            sync_full: latency(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "[ALPHA] SyncProxyRules latency in seconds for full resyncs",
            )?,
            sync_partial: latency(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "[ALPHA] SyncProxyRules latency in seconds for partial resyncs",
            )?,
            last_sync: make.fraction_gauges(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "[ALPHA] The last time proxy rules were successfully synced",
                FAMILY,
            )?,
            last_queued: make.fraction_gauges(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "[ALPHA] The last time a sync of proxy rules was queued",
                FAMILY,
            )?,
            programming: make.histograms(
                "kubeproxy_network_programming_duration_seconds",
                "[ALPHA] In Cluster Network Programming Latency in seconds",
                FAMILY,
                programming_buckets()?,
            )?,
            endpoints_pending: make.gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "[ALPHA] Pending proxy rules Endpoint changes",
            )?,
            endpoints_total: make.counter(
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "[ALPHA] Cumulative proxy rules Endpoint changes",
            )?,
            services_pending: make.gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "[ALPHA] Pending proxy rules Service changes",
            )?,
            services_total: make.counter(
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "[ALPHA] Cumulative proxy rules Service changes",
            )?,
            no_local: make.gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "[ALPHA] Number of services with a Local traffic policy and no endpoints",
                &["traffic_policy", "ip_family"],
            )?,
            nftables_failures: make.counters(
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                "[ALPHA] Cumulative proxy nftables sync failures",
                FAMILY,
            )?,
            healthz: make.counters(
                "kubeproxy_proxy_healthz_total",
                "[ALPHA] Cumulative proxy healthz HTTP status",
                &["code"],
            )?,
            livez: make.counters(
                "kubeproxy_proxy_livez_total",
                "[ALPHA] Cumulative proxy livez HTTP status",
                &["code"],
            )?,
            reconcile: latency(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "[ALPHA] ReconcileConntrackFlowsLatency latency in seconds",
            )?,
            reconcile_deleted: make.counters(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "[ALPHA] Cumulative conntrack flows deleted by conntrack reconciler",
                FAMILY,
            )?,
        })
    }
}

/// 0 (by an oversight of kube-proxy's, but dashboards know it), 0.25 and 0.5 s, each second to 59, each fifth to 115, each thirtieth to 300.
fn programming_buckets() -> Result<Vec<f64>> {
    Ok([
        vec![0.0],
        linear_buckets(0.25, 0.25, 2)?,
        linear_buckets(1.0, 1.0, 59)?,
        linear_buckets(60.0, 5.0, 12)?,
        linear_buckets(120.0, 30.0, 7)?,
    ]
    .concat())
}
