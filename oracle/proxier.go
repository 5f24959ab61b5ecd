package main

import (
	"fmt"
	"net"
	"sort"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/proxy"
	utilnode "k8s.io/kubernetes/pkg/util/node"
	netutils "k8s.io/utils/net"
)

// Proxier is what a proxier of pkg/proxy keeps, of one family on one node.
type Proxier struct {
	node             string
	family           v1.IPFamily
	topology         map[string]string
	serviceChanges   *proxy.ServiceChangeTracker
	endpointsChanges *proxy.EndpointsChangeTracker
	services         proxy.ServicePortMap
	endpoints        proxy.EndpointsMap
	// nodeIP is what detectNodeIPs found. Node objects that change later, or go, change nothing.
	nodeIP net.IP
}

func newProxier(node string, family v1.IPFamily) *Proxier {
	nodeIP := net.IPv6loopback
	if family == v1.IPv4Protocol {
		nodeIP = net.IPv4(127, 0, 0, 1)
	}
	return &Proxier{
		nodeIP:           nodeIP,
		node:             node,
		family:           family,
		serviceChanges:   proxy.NewServiceChangeTracker(family, nil, nil),
		endpointsChanges: proxy.NewEndpointsChangeTracker(family, node, nil, nil),
		services:         proxy.ServicePortMap{},
		endpoints:        proxy.EndpointsMap{},
	}
}

// Frontend is an address that can be dialled, and where it leads.
type Frontend struct {
	Service  string      `json:"service"`
	Port     string      `json:"port"`
	Protocol v1.Protocol `json:"protocol"`
	Family   v1.IPFamily `json:"family"`
	// Kind is "Address" (of whatever sort), "OwnNode" or "OtherNode".
	Kind string `json:"kind"`
	// Address is what is dialled; empty for OwnNode, which stands for all the node's addresses.
	Address string `json:"address"`
	Number  int    `json:"number"`
	Outcome
}

// Outcome is where a frontend leads.
type Outcome struct {
	Endpoints []string `json:"endpoints"`
	// Empty is what an empty list means: "refuse" or "drop".
	Empty string `json:"empty,omitempty"`
	// Affinity is the timeout in seconds; 0 without affinity.
	Affinity int `json:"affinity"`
	// Sources is who may connect; empty: anybody.
	Sources []string `json:"sources,omitempty"`
}

// Health is what the health check server of a Service tells load balancers, in one family.
type Health struct {
	Service string      `json:"service"`
	Family  v1.IPFamily `json:"family"`
	Port    uint16      `json:"port"`
	Local   int         `json:"local"`
}

// NoLocal is how many ports of a Service have endpoints, but by a Local policy none on the node, in
// one family.
type NoLocal struct {
	Service  string      `json:"service"`
	Family   v1.IPFamily `json:"family"`
	Internal int         `json:"internal"`
	External int         `json:"external"`
}

// View is a line of output.
type View struct {
	Frontends []Frontend `json:"frontends"`
	Health    []Health   `json:"health"`
	NoLocal   []NoLocal  `json:"noLocal"`
}

// look brings every proxier up to date and says what the node's own would program.
func (c *Cluster) look() View {
	c.tell(func(p *Proxier) {
		p.services.Update(p.serviceChanges)
		p.endpoints.Update(p.endpointsChanges)
	})
	view := View{Frontends: []Frontend{}, Health: []Health{}, NoLocal: []NoLocal{}}
	for i, own := range c.proxiers[c.node] {
		for name, service := range own.services {
			view.Frontends = append(view.Frontends, own.frontends(name, service)...)
			view.NoLocal = append(view.NoLocal, own.noLocal(name, service)...)
			if service.NodePort() == 0 {
				continue
			}
			for _, node := range c.nodes {
				if node.Name != c.node {
					there := c.proxiers[node.Name][i]
					view.Frontends = append(view.Frontends, own.elsewhere(there, node, name, service)...)
				}
			}
		}
		local := own.endpoints.LocalReadyEndpoints()
		for name, port := range own.services.HealthCheckNodePorts() {
			view.Health = append(view.Health, Health{name.String(), own.family, port, local[name]})
		}
	}
	return view
}

// frontends are those of a Service's port that lead to the same place from every node's own
// addresses. It follows syncProxyRules for sources that are pods of the node or the node itself: they
// reach external addresses by the cluster policy, whatever externalTrafficPolicy says.
func (p *Proxier) frontends(name proxy.ServicePortName, service proxy.ServicePort) []Frontend {
	cluster, local, _, hasEndpoints := p.categorize(name, service)
	internal := cluster
	if service.InternalPolicyLocal() {
		internal = local
	}
	found := []Frontend{p.frontend(name, service, "Address", service.ClusterIP().String(),
		service.Port(), outcome(service, internal, hasEndpoints))}
	external := outcome(service, cluster, hasEndpoints)
	balanced := external
	allowFromNode := false
	for _, source := range service.LoadBalancerSourceRanges() {
		balanced.Sources = append(balanced.Sources, source.String())
		allowFromNode = allowFromNode || source.Contains(p.nodeIP)
	}
	if allowFromNode {
		for _, ip := range service.LoadBalancerVIPs() {
			host := net.IPNet{IP: ip, Mask: net.CIDRMask(bits(ip), bits(ip))}
			balanced.Sources = append(balanced.Sources, host.String())
		}
	}
	isBalanced := map[string]bool{}
	for _, ip := range service.LoadBalancerVIPs() {
		if !isBalanced[ip.String()] {
			isBalanced[ip.String()] = true
			found = append(found, p.frontend(name, service, "Address", ip.String(), service.Port(), balanced))
		}
	}
	seen := map[string]bool{}
	for _, ip := range service.ExternalIPs() {
		// The firewall looks at the address only: of an address that is both, it is in force.
		if !isBalanced[ip.String()] && !seen[ip.String()] {
			seen[ip.String()] = true
			found = append(found, p.frontend(name, service, "Address", ip.String(), service.Port(), external))
		}
	}
	if service.NodePort() != 0 {
		found = append(found, p.frontend(name, service, "OwnNode", "", service.NodePort(), external))
	}
	return found
}

// see takes the node's address of the family, as detectNodeIPs would, were kube-proxy started when the
// Node got it.
func (p *Proxier) see(node *v1.Node) {
	ips, _ := utilnode.GetNodeHostIPs(node)
	for _, ip := range ips {
		if (ip.To4() != nil) == (p.family == v1.IPv4Protocol) {
			p.nodeIP = ip
			return
		}
	}
}

func bits(ip net.IP) int {
	if ip.To4() != nil {
		return 32
	}
	return 128
}

// noLocal is what sync_proxy_rules_no_local_endpoints_total counts.
func (p *Proxier) noLocal(name proxy.ServicePortName, service proxy.ServicePort) []NoLocal {
	_, local, _, hasEndpoints := p.categorize(name, service)
	if !hasEndpoints || len(local) > 0 {
		return nil
	}
	count := NoLocal{Service: name.NamespacedName.String(), Family: p.family}
	if service.InternalPolicyLocal() {
		count.Internal++
	}
	if service.ExternalPolicyLocal() {
		count.External++
	}
	return []NoLocal{count}
}

// elsewhere are the node ports on another node's addresses. With externalTrafficPolicy Local it is
// that node that decides, and to it the client comes from outside. Otherwise any node would do, and
// the client's own decides.
func (p *Proxier) elsewhere(there *Proxier, node *v1.Node, name proxy.ServicePortName, service proxy.ServicePort) []Frontend {
	endpoints, local, _, hasEndpoints := p.categorize(name, service)
	if service.ExternalPolicyLocal() {
		_, local, _, hasEndpoints = there.categorize(name, service)
		endpoints = local
	}
	var found []Frontend
	for _, address := range node.Status.Addresses {
		if address.Type != v1.NodeInternalIP && address.Type != v1.NodeExternalIP {
			continue
		}
		ip := netutils.ParseIPSloppy(address.Address)
		if ip == nil || (ip.To4() != nil) != (p.family == v1.IPv4Protocol) {
			continue
		}
		found = append(found, p.frontend(name, service, "OtherNode", ip.String(), service.NodePort(),
			outcome(service, endpoints, hasEndpoints)))
	}
	return found
}

func (p *Proxier) categorize(name proxy.ServicePortName, service proxy.ServicePort) (cluster, local, all []proxy.Endpoint, hasEndpoints bool) {
	return proxy.CategorizeEndpoints(p.endpoints[name], service, p.node, p.topology)
}

func (p *Proxier) frontend(name proxy.ServicePortName, service proxy.ServicePort, kind, address string, number int, outcome Outcome) Frontend {
	return Frontend{
		Service:  name.NamespacedName.String(),
		Port:     name.Port,
		Protocol: service.Protocol(),
		Family:   p.family,
		Kind:     kind,
		Address:  address,
		Number:   number,
		Outcome:  outcome,
	}
}

func outcome(service proxy.ServicePort, endpoints []proxy.Endpoint, hasEndpoints bool) Outcome {
	outcome := Outcome{Endpoints: []string{}}
	switch {
	case !hasEndpoints:
		outcome.Empty = "refuse"
	case len(endpoints) == 0:
		outcome.Empty = "drop"
	}
	for _, endpoint := range endpoints {
		outcome.Endpoints = append(outcome.Endpoints, net.JoinHostPort(endpoint.IP(), strconv.Itoa(endpoint.Port())))
	}
	sort.Strings(outcome.Endpoints)
	if service.SessionAffinityType() == v1.ServiceAffinityClientIP {
		outcome.Affinity = service.StickyMaxAgeSeconds()
	}
	if !hasEndpoints && len(endpoints) > 0 {
		panic(fmt.Sprintf("%s has endpoints and has none", service))
	}
	return outcome
}
