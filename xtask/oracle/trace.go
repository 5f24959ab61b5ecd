package main

import (
	"context"
	"fmt"
	"net/netip"
	"sort"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy"
	"sigs.k8s.io/knftables"
)

// Question is the first packet of a connection.
type Question struct {
	// From is where the client is: "pod" of the node, the "host" itself, or "outside".
	From     string `json:"from"`
	Source   string `json:"source"`
	To       string `json:"to"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	// Only is a Service (namespace/name) that is asked about as if there were no others.
	Only string `json:"only"`
	// KnowsPods is whether the client's node is asked as if it told its pods from strangers.
	KnowsPods bool `json:"knowsPods"`
	// Known is whether the client may have been here before, by the clock Now, in seconds. All others
	// are new.
	Known bool `json:"known"`
	Now   int  `json:"now"`
	// Gets is the endpoint that the client gets, which is then remembered.
	Gets string `json:"gets"`
}

// Answer is what becomes of it.
type Answer struct {
	// Node is another one than the client's, if that one's rules made the decision.
	Node string `json:"node,omitempty"`
	// Verdict is "none": it goes where it was sent; "forward", "reject" or "drop".
	Verdict string `json:"verdict"`
	// By is the chain that rejected or dropped it.
	By string `json:"by,omitempty"`
	// Reached is each endpoint that it may get to.
	Reached []Reached `json:"reached,omitempty"`
	// Here is which ones the rules of the client's node would choose from, where those of another
	// node chose by the policy Cluster.
	Here []netip.AddrPort `json:"here,omitempty"`
	// Spared is why the refusal of ports that a cluster IP lacks was passed over: "pass" if none is to
	// be refused, "own" at an address of the node.
	Spared string `json:"spared,omitempty"`
	// Affinity is the timeout in seconds; 0 without affinity.
	Affinity int `json:"affinity,omitempty"`
	// Timeout is what the Service says; a set of nftables keeps the one that it was made with.
	Timeout int `json:"timeout,omitempty"`
}

// Reached is an endpoint.
type Reached struct {
	Endpoint netip.AddrPort `json:"endpoint"`
	// Then is "reject" or "drop" if the packet does not get further with this destination.
	Then string `json:"then,omitempty"`
	// Masquerade is whether the endpoint sees the node's address as its source, or would if the packet
	// were not rejected on its way, or did not end on the node itself, where nothing is masqueraded.
	Masquerade bool `json:"masquerade,omitempty"`
	// ByAddress is whether that is so only because it was sent to a cluster IP, at whatever port.
	ByAddress bool `json:"byAddress,omitempty"`
}

// run is a packet on its way through one node, with one series of random choices.
type run struct {
	node     *Node
	proxier  *Proxier
	tables   *Tables
	question *Question
	fromHost bool
	iif      string
	saddr    netip.Addr
	daddr    netip.Addr
	protocol string
	port     uint16

	mark          uint32
	isTranslated  bool
	isMasqueraded bool
	// byAddress and byOther are what marked it, or masqueraded it without a mark.
	byAddress bool
	byOther   bool
	// in is the chain whose rules it passes.
	in          string
	affinity    int
	affinitySet string
	// policy is the last chain that stands for endpoints to choose from.
	policy string
	// by is the chain in which it ended.
	by string
	// spared is Answer.Spared.
	spared string
	// found is an element of a verdict map.
	found []string

	// script are the choices that are made, taken those that were, and of how many.
	script []int
	taken  []int
	of     []int
}

// choose is one of n, by the script, which goes on with zeros.
func (r *run) choose(n uint32) int {
	choice := 0
	if len(r.taken) < len(r.script) {
		choice = r.script[len(r.taken)]
	}
	r.taken, r.of = append(r.taken, choice), append(r.of, int(n))
	return choice
}

// all runs a copy of the packet for every series of choices.
func (r run) all(pass func(*run)) {
	for {
		once := r
		once.taken, once.of = nil, nil
		pass(&once)
		last := len(once.taken) - 1
		for last >= 0 && once.taken[last]+1 == once.of[last] {
			last--
		}
		if last < 0 {
			return
		}
		r.script = once.taken[:last+1]
		r.script[last]++
	}
}

func (r *run) translate(to netip.AddrPort) {
	r.daddr, r.port, r.isTranslated = to.Addr(), to.Port(), true
}

// pass takes the packet through the hooks of the node.
func (r *run) pass() verdict {
	if r.fromHost {
		if v := r.hooks("output", "postrouting"); v != accept || !r.node.isLocal(r.daddr) {
			return v
		}
		// It comes back through the loopback interface, translated already or not at all.
		r.fromHost, r.iif = false, "lo"
		if v := r.hook("prerouting", false); v != accept {
			return v
		}
		return r.hooks("input")
	}
	if v := r.hooks("prerouting"); v != accept {
		return v
	}
	if r.node.isLocal(r.daddr) {
		return r.hooks("input")
	}
	return r.hooks("forward", "postrouting")
}

func (r *run) hooks(names ...string) verdict {
	for _, name := range names {
		if v := r.hook(name, true); v != accept {
			return v
		}
	}
	return accept
}

func (r *run) hook(name string, isNew bool) verdict {
	for _, base := range r.tables.hooks[name] {
		if base.isNAT && !isNew {
			continue
		}
		if v := r.chain(base.name); v == drop || v == reject {
			return v
		}
	}
	return accept
}

var verdicts = map[verdict]string{accept: "", drop: "drop", reject: "reject"}

// ask follows a packet to its end, or to its second node.
func (c *Cluster) ask(q Question) (Answer, error) {
	source, err := netip.ParseAddr(q.Source)
	if err != nil {
		return Answer{}, err
	}
	to, err := netip.ParseAddr(q.To)
	if err != nil {
		return Answer{}, err
	}
	family := v1.IPv4Protocol
	if to.Is6() {
		family = v1.IPv6Protocol
	}
	own := c.own()
	first, chain, err := own.trace(family, q, source, to, q.From)
	spared := first.Spared
	if err != nil || first.Verdict != "none" || own.isLocal(to) || q.From == "outside" {
		return first, err
	}
	for _, name := range sorted(c.nodes) {
		there := c.nodes[name]
		if there == own || !there.isLocal(to) {
			continue
		}
		var second Answer
		second, chain, err = there.trace(family, q, source, to, "outside")
		second.Node, second.Spared = name, spared
		if err == nil && strings.HasPrefix(chain, "service-") {
			second.Here, err = own.endpoints(family, q.Only, chain)
		}
		return second, err
	}
	return first, nil
}

// proxier is the one that has a question to answer; none if the machine lacks the family.
func (n *Node) proxier(family v1.IPFamily, role Role) *Proxier {
	p := n.proxiers[family]
	if p != nil && role != (Role{}) {
		return p.other(role)
	}
	return p
}

// trace says what becomes of a packet on the node, and by which chain of endpoints.
func (n *Node) trace(family v1.IPFamily, q Question, source, to netip.Addr, from string) (answer Answer, chain string, err error) {
	proxier := n.proxier(family, Role{q.Only, q.KnowsPods})
	if proxier == nil {
		return Answer{Verdict: "none"}, "", nil
	}
	tables, err := proxier.written()
	if err != nil {
		return answer, "", err
	}
	iif := map[string]string{"pod": podInterface, "host": "", "outside": outsideInterface}
	packet := run{
		node:     n,
		proxier:  proxier,
		tables:   tables,
		question: &q,
		fromHost: from == "host",
		iif:      iif[from],
		saddr:    source,
		daddr:    to,
		protocol: strings.ToLower(q.Protocol),
		port:     q.Port,
	}
	gets := ""
	packet.all(func(r *run) {
		last := r.pass()
		verdict := "none"
		if r.isTranslated {
			verdict = "forward"
			answer.Reached = append(answer.Reached, Reached{
				Endpoint:   netip.AddrPortFrom(r.daddr, r.port),
				Then:       verdicts[last],
				Masquerade: r.isMasqueraded || r.mark != 0,
				ByAddress:  r.byAddress && !r.byOther,
			})
		} else if last != accept {
			verdict, answer.By = verdicts[last], r.by
		}
		if answer.Verdict != "" && answer.Verdict != verdict {
			err = fmt.Errorf("both %s and %s", answer.Verdict, verdict)
		}
		answer.Verdict, answer.Affinity, chain = verdict, r.affinity, r.policy
		answer.Timeout, answer.Spared = proxier.timeout(r.affinitySet), r.spared
		if r.affinitySet != "" && q.Gets == netip.AddrPortFrom(r.daddr, r.port).String() {
			gets = r.affinitySet
		}
	})
	sort.Slice(answer.Reached, func(i, j int) bool {
		return answer.Reached[i].Endpoint.Compare(answer.Reached[j].Endpoint) < 0
	})
	if gets != "" && err == nil {
		err = proxier.remember(gets, source, q.Now)
	}
	return answer, chain, err
}

// endpoints are those that a chain chooses from.
func (n *Node) endpoints(family v1.IPFamily, only, chain string) ([]netip.AddrPort, error) {
	tables, err := n.proxier(family, Role{alone: only}).written()
	if err != nil {
		return nil, err
	}
	var all []netip.AddrPort
	protocol := strings.Split(chain, "/")[2]
	packet := run{node: n, tables: tables, protocol: protocol, question: &Question{}}
	packet.all(func(r *run) {
		r.chain(chain)
		if r.isTranslated {
			all = append(all, netip.AddrPortFrom(r.daddr, r.port))
		}
	})
	sort.Slice(all, func(i, j int) bool { return all[i].Compare(all[j]) < 0 })
	return all, nil
}

// timeout is what the Service of a set for affinity says now. The set is called
// affinity-HASH-NAMESPACE/NAME/PROTOCOL/PORT__ADDRESS/PORT.
func (p *Proxier) timeout(set string) int {
	if set == "" {
		return 0
	}
	const hash = len("affinity-") + 8 + 1
	parts := strings.SplitN(strings.SplitN(set[hash:], "__", 2)[0], "/", 4)
	port := proxy.ServicePortName{
		NamespacedName: types.NamespacedName{Namespace: parts[0], Name: parts[1]},
		Port:           parts[3],
		Protocol:       v1.Protocol(strings.ToUpper(parts[2])),
	}
	return p.Services()[port].StickyMaxAgeSeconds()
}

// remember does what an update of a set for affinity does.
func (p *Proxier) remember(set string, client netip.Addr, now int) error {
	at := strconv.Itoa(now)
	tx := p.fake.NewTransaction()
	tx.Add(&knftables.Element{Set: set, Key: []string{client.String()}, Comment: &at})
	if err := p.fake.Run(context.Background(), tx); err != nil {
		return err
	}
	p.tables = newTables(p.fake)
	return nil
}

// remembers is whether a set for affinity has the client, and not for too long.
func (r *run) remembers(set string) bool {
	at, ok := r.tables.clients[set][r.saddr.String()]
	return ok && r.question.Known && r.question.Now-at < r.proxier.timeout(set)
}
