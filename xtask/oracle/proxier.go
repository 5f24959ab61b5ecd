package main

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-base/metrics/testutil"
	"k8s.io/kubernetes/pkg/proxy/metrics"
	"sigs.k8s.io/knftables"

	"socklb.invalid/kubernetes/nftables"
)

// Proxier is kube-proxy's, of one family, with what it writes to.
type Proxier struct {
	*nftables.Proxier
	node   *Node
	family v1.IPFamily
	fake   *knftables.Fake
	health *health
	role   Role
	// others are proxiers on the same node, as of the last step.
	others map[Role]*Proxier
	tables *Tables
	// stale is whether it was told something since it last wrote.
	stale   bool
	noLocal map[string]float64
}

// Role is what a proxier is asked as; zero: as the one that runs on the node.
type Role struct {
	// alone is the Service that it is told of; empty: all.
	alone string
	// knowsPods is whether it tells the node's pods from strangers, whatever the flags are.
	knowsPods bool
}

// startProxier makes a proxier as newProxyServer and createProxier do, and tells it all that is known.
func (n *Node) startProxier(family v1.IPFamily, fake *knftables.Fake, role Role) *Proxier {
	p := &Proxier{node: n, family: family, fake: fake, role: role, health: &health{}, stale: true}
	tracking := n.tracking[family]
	if role != (Role{}) {
		tracking = &Tracking{}
	}
	made, err := nftables.New(family, n.name, n.nodeIP(family), n.nodePortAddresses(), n.cluster.config.MasqueradeAll, nftables.Machine{
		Tables:    fake,
		Network:   n,
		Health:    p.health,
		Conntrack: tracking,
		Detector:  n.detector(family, role.knowsPods),
	})
	if err != nil {
		panic(err)
	}
	p.Proxier = made
	for _, name := range sorted(n.cluster.services) {
		p.service(nil, n.cluster.services[name])
	}
	for _, name := range sorted(n.cluster.slices) {
		p.slice(nil, n.cluster.slices[name])
	}
	if len(n.topology) > 0 {
		p.OnTopologyChange(n.topology)
	}
	p.OnServiceSynced()
	p.OnEndpointSlicesSynced()
	p.wrote()
	return p
}

func (p *Proxier) tell(say func()) {
	say()
	p.stale = true
	p.others = nil
}

func (p *Proxier) service(before, now *v1.Service) {
	if p.role.alone != "" && (now == nil || key(now) != p.role.alone) {
		return
	}
	p.tell(func() {
		switch {
		case before == nil && now == nil:
		case before == nil:
			p.OnServiceAdd(now)
		case now == nil:
			p.OnServiceDelete(before)
		default:
			p.OnServiceUpdate(before, now)
		}
	})
}

func (p *Proxier) slice(before, now *discovery.EndpointSlice) {
	// As MetaProxier.
	slice := now
	if slice == nil {
		slice = before
	}
	if slice == nil || slice.AddressType != discovery.AddressType(p.family) {
		return
	}
	p.tell(func() {
		switch {
		case before == nil:
			p.OnEndpointSliceAdd(now)
		case now == nil:
			p.OnEndpointSliceDelete(before)
		default:
			p.OnEndpointSliceUpdate(before, now)
		}
	})
}

// written is the proxier's tables, once it has written all that it was told.
func (p *Proxier) written() (*Tables, error) {
	if p.stale {
		if err := p.Write(); err != nil {
			return nil, fmt.Errorf("%s on node %s: %w", p.family, p.node.name, err)
		}
		p.wrote()
	}
	return p.tables, nil
}

// wrote looks at what the last sync left.
func (p *Proxier) wrote() {
	p.stale = false
	p.tables = newTables(p.fake)
	p.noLocal = map[string]float64{}
	for _, policy := range []string{"internal", "external"} {
		gauge := metrics.SyncProxyRulesNoLocalEndpointsTotal.WithLabelValues(policy, string(p.family))
		count, err := testutil.GetGaugeMetricValue(gauge)
		if err != nil {
			panic(err)
		}
		p.noLocal[policy] = count
	}
}

// other is a proxier of the same node with another role.
func (p *Proxier) other(role Role) *Proxier {
	if p.others == nil {
		p.others = map[Role]*Proxier{}
	}
	if p.others[role] == nil {
		p.others[role] = p.node.startProxier(p.family, nftables.NewTables(p.family), role)
	}
	return p.others[role]
}

// health is what kube-proxy tells its health check server.
type health struct {
	ports map[types.NamespacedName]uint16
	local map[types.NamespacedName]int
}

func (h *health) SyncServices(ports map[types.NamespacedName]uint16) error {
	h.ports = ports
	return nil
}

func (h *health) SyncEndpoints(local map[types.NamespacedName]int) error {
	h.local = local
	return nil
}
