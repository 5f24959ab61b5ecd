package main

import (
	"sort"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/proxy"
)

// State is what kube-proxy on the client's node says after a step, beside its rules.
type State struct {
	Claims  []Claim   `json:"claims"`
	Health  []Health  `json:"health"`
	NoLocal []NoLocal `json:"noLocal"`
	// Flows are those that connection tracking still has, on all nodes.
	Flows []Lasting `json:"flows"`
}

// Claim is an address that a Service wants for one of its ports; several may want the same.
type Claim struct {
	Service  string      `json:"service"`
	Port     string      `json:"port"`
	Protocol v1.Protocol `json:"protocol"`
	Family   v1.IPFamily `json:"family"`
	// Kind is "Cluster", "External", "Balancer" or "Node".
	Kind string `json:"kind"`
	// Address is empty for Node, which stands for all addresses of all nodes.
	Address string `json:"address"`
	Number  int    `json:"number"`
}

// Health is what the health check server of a Service tells load balancers, in one family.
type Health struct {
	Service string      `json:"service"`
	Family  v1.IPFamily `json:"family"`
	Port    uint16      `json:"port"`
	Local   int         `json:"local"`
}

// NoLocal is sync_proxy_rules_no_local_endpoints_total of one family: how many ports have endpoints,
// but by a Local policy none on the node.
type NoLocal struct {
	Family   v1.IPFamily `json:"family"`
	Internal int         `json:"internal"`
	External int         `json:"external"`
}

func (c *Cluster) state() (State, error) {
	state := State{Claims: []Claim{}, Health: []Health{}, NoLocal: []NoLocal{}}
	for family, proxier := range c.own().proxiers {
		if _, err := proxier.written(); err != nil {
			return state, err
		}
		for name, port := range proxier.Services() {
			state.Claims = append(state.Claims, claims(family, name, port)...)
		}
		for name, port := range proxier.health.ports {
			local := proxier.health.local[name]
			state.Health = append(state.Health, Health{name.String(), family, port, local})
		}
		state.NoLocal = append(state.NoLocal, NoLocal{
			Family:   family,
			Internal: int(proxier.noLocal["internal"]),
			External: int(proxier.noLocal["external"]),
		})
	}
	var err error
	if state.Flows, err = c.lasting(); err != nil {
		return state, err
	}
	sort.Slice(state.Claims, func(i, j int) bool {
		a, b := state.Claims[i], state.Claims[j]
		return a.Service+a.Port < b.Service+b.Port
	})
	return state, nil
}

func claims(family v1.IPFamily, name proxy.ServicePortName, port proxy.ServicePort) []Claim {
	var all []Claim
	add := func(kind, address string, number int) {
		all = append(all, Claim{
			Service:  name.NamespacedName.String(),
			Port:     name.Port,
			Protocol: port.Protocol(),
			Family:   family,
			Kind:     kind,
			Address:  address,
			Number:   number,
		})
	}
	add("Cluster", port.ClusterIP().String(), port.Port())
	for _, ip := range port.LoadBalancerVIPs() {
		add("Balancer", ip.String(), port.Port())
	}
	for _, ip := range port.ExternalIPs() {
		add("External", ip.String(), port.Port())
	}
	if port.NodePort() != 0 {
		add("Node", "", port.NodePort())
	}
	return all
}
