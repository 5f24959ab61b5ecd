// Package nftables is kube-proxy's own package of that name, all of it but its supported.go, which
// looks for an nft program and a kernel that has nftables. This file stands in for it.
package nftables

import (
	"context"
	"net"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/conntrack"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	"sigs.k8s.io/knftables"
)

// The tables of the proxier that is being made.
var given *knftables.Fake

func getNFTablesInterface(v1.IPFamily) (knftables.Interface, error) {
	return given, nil
}

// NewTables is nftables in memory, without a table.
func NewTables(family v1.IPFamily) *knftables.Fake {
	if family == v1.IPv4Protocol {
		return knftables.NewFake(knftables.IPv4Family, kubeProxyTable)
	}
	return knftables.NewFake(knftables.IPv6Family, kubeProxyTable)
}

// Machine is what a proxier finds on its node.
type Machine struct {
	// Tables may be full of what an earlier proxier wrote.
	Tables    *knftables.Fake
	Network   proxyutil.NetworkInterfacer
	Health    healthcheck.ServiceHealthServer
	Conntrack conntrack.Interface
	Detector  proxyutil.LocalTrafficDetector
}

// New is NewProxier, which is what makes the proxier, on a machine that is given.
func New(family v1.IPFamily, node string, nodeIP net.IP, nodePortAddresses []string, masqueradeAll bool, on Machine) (*Proxier, error) {
	const masqueradeBit = 14
	given = on.Tables
	proxier, err := NewProxier(context.Background(), family, time.Hour, 0, masqueradeAll, masqueradeBit,
		on.Detector, node, nodeIP, nil, nil, nodePortAddresses, false)
	if err != nil {
		return nil, err
	}
	proxier.networkInterfacer = on.Network
	proxier.serviceHealthServer = on.Health
	proxier.conntrack = on.Conntrack
	return proxier, nil
}

// Write makes the tables say what the proxier knows, as its loop would.
func (proxier *Proxier) Write() error {
	return proxier.syncProxyRules()
}

// SyncFully has the next Write begin anew, as the loop does once an hour.
func (proxier *Proxier) SyncFully() {
	proxier.needFullSync = true
}

// Clean deletes from a table of connection tracking what is stale by what was written last.
func (proxier *Proxier) Clean(table conntrack.Interface) {
	conntrack.CleanStaleEntries(table, proxier.ipFamily, proxier.svcPortMap, proxier.endpointsMap)
}

// Services are the ports that it serves, as of the last Write.
func (proxier *Proxier) Services() proxy.ServicePortMap {
	return proxier.svcPortMap
}
