package main

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-base/metrics/testutil"
	"k8s.io/kubernetes/pkg/proxy/metrics"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	netutils "k8s.io/utils/net"
	"sigs.k8s.io/knftables"

	"socklb.invalid/kubernetes/nftables"
)

// The interfaces through which packets come.
const (
	podInterface     = "cni0"
	outsideInterface = "eth0"
)

// Node is a machine, and the kube-proxy on it, which has a proxier for each family.
type Node struct {
	cluster *Cluster
	name    string
	// status are the addresses in the Node's status, InternalIPs first; on the client's node, of a
	// family of which it says none, those that it said before. The machine has them on its interfaces
	// (I3, J2).
	status   []netip.Addr
	topology map[string]string
	proxiers map[v1.IPFamily]*Proxier
}

// Proxier is kube-proxy's, of one family, with what it writes to.
type Proxier struct {
	*nftables.Proxier
	node   *Node
	family v1.IPFamily
	fake   *knftables.Fake
	health *health
	// alone is the Service that it is told of; empty: all.
	alone string
	// others are proxiers on the same node, each with one Service alone, as of the last step.
	others map[string]*Proxier
	tables *Tables
	// stale is whether it was told something since it last wrote.
	stale   bool
	noLocal map[string]float64
}

// newNode starts a kube-proxy; before is the node when an earlier one ran on it.
func newNode(c *Cluster, name string, before *Node) *Node {
	n := &Node{cluster: c, name: name, topology: map[string]string{}, proxiers: map[v1.IPFamily]*Proxier{}}
	if object := c.objects[name]; object != nil {
		n.status, n.topology = merge(nil, object), topology(object)
	}
	for _, family := range c.config.Families {
		family := v1.IPFamily(family)
		fake := nftables.NewTables(family)
		if before != nil {
			fake = before.proxiers[family].fake
		}
		n.proxiers[family] = n.startProxier(family, fake, "")
	}
	return n
}

// follow takes in the Node. kube-proxy reads its addresses once, and asks to be restarted when they
// change (a FIXME in pkg/proxy/node.go); socklb follows them (J2), so here it is restarted.
func (n *Node) follow(object *v1.Node) {
	// As NodeTopologyConfig: a Node that goes leaves its zone behind.
	if labels := topology(object); !reflect.DeepEqual(n.topology, labels) {
		n.topology = labels
		for _, proxier := range n.proxiers {
			proxier.tell(func() { proxier.OnTopologyChange(labels) })
		}
	}
	status := merge(nil, object)
	if n.name == n.cluster.config.Node {
		status = merge(n.status, object)
	}
	if reflect.DeepEqual(n.status, status) {
		return
	}
	n.status = status
	for family, proxier := range n.proxiers {
		n.proxiers[family] = n.startProxier(family, proxier.fake, "")
	}
}

func topology(object *v1.Node) map[string]string {
	labels := map[string]string{}
	if zone, ok := object.Labels[v1.LabelTopologyZone]; ok {
		labels[v1.LabelTopologyZone] = zone
	}
	return labels
}

// merge is what the status says, and of a family of which it says nothing, what it said before.
func merge(before []netip.Addr, object *v1.Node) []netip.Addr {
	var now []netip.Addr
	for _, kind := range []v1.NodeAddressType{v1.NodeInternalIP, v1.NodeExternalIP} {
		for _, address := range object.Status.Addresses {
			if ip, err := netip.ParseAddr(address.Address); err == nil && address.Type == kind {
				now = append(now, ip)
			}
		}
	}
	var merged []netip.Addr
	for _, is4 := range []bool{true, false} {
		if family := ofFamily(now, is4); len(family) > 0 {
			merged = append(merged, family...)
		} else {
			merged = append(merged, ofFamily(before, is4)...)
		}
	}
	return merged
}

func ofFamily(all []netip.Addr, is4 bool) []netip.Addr {
	var some []netip.Addr
	for _, ip := range all {
		if ip.Is4() == is4 {
			some = append(some, ip)
		}
	}
	return some
}

// startProxier makes a proxier as newProxyServer and createProxier do, and tells it all that is known.
func (n *Node) startProxier(family v1.IPFamily, fake *knftables.Fake, alone string) *Proxier {
	p := &Proxier{node: n, family: family, fake: fake, alone: alone, health: &health{}, stale: true}
	made, err := nftables.New(family, n.name, n.nodeIP(family), n.nodePortAddresses(), nftables.Machine{
		Tables:   fake,
		Network:  n,
		Health:   p.health,
		Detector: n.detector(family),
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

// nodeIP is what detectNodeIPs finds.
func (n *Node) nodeIP(family v1.IPFamily) net.IP {
	if own := ofFamily(n.status, family == v1.IPv4Protocol); len(own) > 0 {
		return net.IP(own[0].AsSlice())
	}
	if family == v1.IPv4Protocol {
		return net.IPv4(127, 0, 0, 1)
	}
	return net.IPv6loopback
}

// nodePortAddresses is the flag, or what newProxyServer makes of "primary". With "primary-only" a
// family without an address has none, where kube-proxy leaves loopback addresses out and then serves
// all of the family.
func (n *Node) nodePortAddresses() []string {
	flag := n.cluster.config.NodePortAddresses
	if len(flag) != 1 || flag[0] != "primary" && flag[0] != "primary-only" {
		return flag
	}
	var ranges []string
	for _, family := range []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol} {
		ip := n.nodeIP(family)
		if flag[0] == "primary-only" || !ip.IsLoopback() {
			ranges = append(ranges, fmt.Sprintf("%s/%d", ip, map[v1.IPFamily]int{v1.IPv4Protocol: 32, v1.IPv6Protocol: 128}[family]))
		}
	}
	return ranges
}

// detector tells the node's own pods from others. No client is a pod of another node.
func (n *Node) detector(family v1.IPFamily) proxyutil.LocalTrafficDetector {
	switch n.cluster.config.DetectLocal {
	case "BridgeInterface":
		return proxyutil.NewDetectLocalByBridgeInterface(podInterface)
	case "InterfaceNamePrefix":
		return proxyutil.NewDetectLocalByInterfaceNamePrefix("cni")
	}
	cidrs := []string{"10.255.0.0/16", "fd00:ff::/32"}
	if n.name == n.cluster.config.Node {
		cidrs = n.cluster.config.PodCIDRs
	}
	for _, cidr := range cidrs {
		if netutils.IsIPv4CIDRString(cidr) == (family == v1.IPv4Protocol) {
			return proxyutil.NewDetectLocalByCIDR(cidr)
		}
	}
	return proxyutil.NewNoOpLocalDetector()
}

// InterfaceAddrs are the machine's addresses, for kube-proxy.
func (n *Node) InterfaceAddrs() ([]net.Addr, error) {
	var addrs []net.Addr
	for _, ip := range n.addresses() {
		addrs = append(addrs, &net.IPNet{IP: net.IP(ip.AsSlice()), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())})
	}
	return addrs, nil
}

func (n *Node) addresses() []netip.Addr {
	all := append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, n.status...)
	if n.name == n.cluster.config.Node {
		for _, text := range n.cluster.config.Interfaces {
			all = append(all, netip.MustParseAddr(text))
		}
	}
	return all
}

// isLocal is what a route lookup says.
func (n *Node) isLocal(ip netip.Addr) bool {
	if ip.IsLoopback() {
		return true
	}
	for _, own := range n.addresses() {
		if own == ip {
			return true
		}
	}
	return false
}

func (p *Proxier) tell(say func()) {
	say()
	p.stale = true
	p.others = nil
}

func (p *Proxier) service(before, now *v1.Service) {
	if p.alone != "" && (now == nil || key(now) != p.alone) {
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

// only is a proxier of the same node that knows one Service alone.
func (p *Proxier) only(service string) *Proxier {
	if p.others == nil {
		p.others = map[string]*Proxier{}
	}
	if p.others[service] == nil {
		p.others[service] = p.node.startProxier(p.family, nftables.NewTables(p.family), service)
	}
	return p.others[service]
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
