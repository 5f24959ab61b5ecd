package main

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// Flow is a UDP flow that a node lets through: connection tracking has an entry of it from then on.
type Flow struct {
	Source string `json:"source"`
	// SourcePort is this flow's alone.
	SourcePort uint16 `json:"sourcePort"`
	To         string `json:"to"`
	Port       uint16 `json:"port"`
	// Node is the one that translated it; empty: the client's.
	Node string `json:"node"`
	// Endpoint is where it was translated to; empty: it goes where it was sent.
	Endpoint string `json:"endpoint"`
}

// Lasting is an entry that is still there.
type Lasting struct {
	SourcePort uint16 `json:"sourcePort"`
	// Stale is whether kube-proxy would delete it, looked it now: it does only after endpoints changed.
	Stale bool `json:"stale,omitempty"`
	// Orphan is whether it would delete no entry at all of flows to that address: no Service has
	// serving endpoints there.
	Orphan bool `json:"orphan,omitempty"`
}

// Tracking is connection tracking's table on a node, of one family. It outlives proxiers.
type Tracking struct {
	entries []*netlink.ConntrackFlow
}

// ListEntries is conntrack.Interface's.
func (t *Tracking) ListEntries(uint8) ([]*netlink.ConntrackFlow, error) {
	return t.entries, nil
}

// DeleteEntries is conntrack.Interface's.
func (t *Tracking) DeleteEntries(_ uint8, flows []*netlink.ConntrackFlow) (int, error) {
	gone := map[*netlink.ConntrackFlow]bool{}
	for _, flow := range flows {
		gone[flow] = true
	}
	var left []*netlink.ConntrackFlow
	for _, entry := range t.entries {
		if !gone[entry] {
			left = append(left, entry)
		}
	}
	deleted := len(t.entries) - len(left)
	t.entries = left
	return deleted, nil
}

// begin makes the entry of a flow.
func (c *Cluster) begin(flow Flow) error {
	source, err := netip.ParseAddr(flow.Source)
	if err != nil {
		return err
	}
	to, err := netip.ParseAddr(flow.To)
	if err != nil {
		return err
	}
	end := netip.AddrPortFrom(to, flow.Port)
	if flow.Endpoint != "" {
		if end, err = netip.ParseAddrPort(flow.Endpoint); err != nil {
			return err
		}
	}
	node := c.own()
	if flow.Node != "" {
		if node = c.nodes[flow.Node]; node == nil {
			return fmt.Errorf("no node %s", flow.Node)
		}
	}
	family := v1.IPv4Protocol
	if to.Is6() {
		family = v1.IPv6Protocol
	}
	tracking := node.tracking[family]
	tracking.entries = append(tracking.entries, &netlink.ConntrackFlow{
		Forward: netlink.IPTuple{
			Protocol: unix.IPPROTO_UDP,
			SrcIP:    source.AsSlice(),
			SrcPort:  flow.SourcePort,
			DstIP:    to.AsSlice(),
			DstPort:  flow.Port,
		},
		Reverse: netlink.IPTuple{
			Protocol: unix.IPPROTO_UDP,
			SrcIP:    end.Addr().AsSlice(),
			SrcPort:  end.Port(),
			DstIP:    source.AsSlice(),
			DstPort:  flow.SourcePort,
		},
	})
	return nil
}

// lasting are the entries of all nodes after their proxiers' last sync.
func (c *Cluster) lasting() ([]Lasting, error) {
	all := []Lasting{}
	for _, name := range sorted(c.nodes) {
		node := c.nodes[name]
		for family, tracking := range node.tracking {
			if len(tracking.entries) == 0 {
				continue
			}
			proxier := node.proxiers[family]
			if _, err := proxier.written(); err != nil {
				return nil, err
			}
			// Beside each entry another one that leads nowhere.
			look := &Tracking{}
			nowhere := map[*netlink.ConntrackFlow]*netlink.ConntrackFlow{}
			for _, entry := range tracking.entries {
				other := *entry
				other.Reverse.SrcPort = 0
				nowhere[entry] = &other
				look.entries = append(look.entries, entry, &other)
			}
			proxier.Clean(look)
			left := map[*netlink.ConntrackFlow]bool{}
			for _, entry := range look.entries {
				left[entry] = true
			}
			for _, entry := range tracking.entries {
				all = append(all, Lasting{
					SourcePort: entry.Forward.SrcPort,
					Stale:      !left[entry],
					Orphan:     left[nowhere[entry]],
				})
			}
		}
	}
	return all, nil
}
