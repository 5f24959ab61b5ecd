package main

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"

	v1 "k8s.io/api/core/v1"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	netutils "k8s.io/utils/net"

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
	tracking map[v1.IPFamily]*Tracking
}

// newNode starts a kube-proxy; before is the node when an earlier one ran on it.
func newNode(c *Cluster, name string, before *Node) *Node {
	n := &Node{cluster: c, name: name, topology: map[string]string{}, proxiers: map[v1.IPFamily]*Proxier{}, tracking: map[v1.IPFamily]*Tracking{}}
	if object := c.objects[name]; object != nil {
		n.status, n.topology = merge(nil, object), topology(object)
	}
	for _, family := range c.config.Families {
		family := v1.IPFamily(family)
		fake := nftables.NewTables(family)
		n.tracking[family] = &Tracking{}
		if before != nil {
			fake, n.tracking[family] = before.proxiers[family].fake, before.tracking[family]
		}
		n.proxiers[family] = n.startProxier(family, fake, Role{})
	}
	return n
}

// look has the proxiers read the addresses of interfaces again, which they do with each full sync: once
// an hour. socklb follows them (I3).
func (n *Node) look() {
	for _, proxier := range n.proxiers {
		proxier.tell(proxier.SyncFully)
	}
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
		n.proxiers[family] = n.startProxier(family, proxier.fake, Role{})
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

// detector tells the node's own pods from others, as getLocalDetectors makes it; knowsPods: whatever the
// flags are. Clients of this node are no pods of another one's (E5), also with ClusterCIDR.
func (n *Node) detector(family v1.IPFamily, knowsPods bool) proxyutil.LocalTrafficDetector {
	var cidrs []string
	switch mode := n.cluster.config.DetectLocal; {
	case mode == "BridgeInterface":
		return proxyutil.NewDetectLocalByBridgeInterface(podInterface)
	case mode == "InterfaceNamePrefix":
		return proxyutil.NewDetectLocalByInterfaceNamePrefix("cni")
	case n.name != n.cluster.config.Node:
		cidrs = []string{"10.255.0.0/16", "fd00:ff::/32"}
	case mode == "ClusterCIDR" && !knowsPods:
		cidrs = n.cluster.config.ClusterCIDRs
	default:
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
		for _, text := range n.cluster.interfaces {
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
