package main

import (
	"fmt"
	"net/netip"
	"sort"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/knftables"
)

// Tables is what kube-proxy wrote, as the kernel looks at it.
type Tables struct {
	// hooks are the base chains of each hook, in the order in which packets pass them.
	hooks    map[string][]base
	chains   map[string][][]string
	elements map[string]map[string][]string
	timeouts map[string]time.Duration
	// clients are those that sets for affinity remember, and since when.
	clients map[string]map[string]int
}

type base struct {
	name     string
	isNAT    bool
	priority int
}

func newTables(fake *knftables.Fake) *Tables {
	t := &Tables{
		hooks:    map[string][]base{},
		chains:   map[string][][]string{},
		elements: map[string]map[string][]string{},
		timeouts: map[string]time.Duration{},
		clients:  map[string]map[string]int{},
	}
	for name, chain := range fake.Table.Chains {
		for _, rule := range chain.Rules {
			t.chains[name] = append(t.chains[name], words(rule.Rule))
		}
		if chain.Hook == nil {
			continue
		}
		priority, err := knftables.ParsePriority(fake.Table.Family, string(*chain.Priority))
		if err != nil {
			panic(err)
		}
		hook := string(*chain.Hook)
		t.hooks[hook] = append(t.hooks[hook], base{name, *chain.Type == knftables.NATType, priority})
	}
	for _, chains := range t.hooks {
		sort.Slice(chains, func(i, j int) bool { return chains[i].priority < chains[j].priority })
	}
	for name, set := range fake.Table.Sets {
		t.index(name, set.Elements)
		if set.Timeout != nil {
			t.timeouts[name] = *set.Timeout
			t.clients[name] = map[string]int{}
			for _, element := range set.Elements {
				t.clients[name][element.Key[0]] = int(number(*element.Comment))
			}
		}
	}
	for name, of := range fake.Table.Maps {
		t.index(name, of.Elements)
	}
	return t
}

// index makes the elements of a set, or a map, findable by their keys.
func (t *Tables) index(name string, elements []*knftables.Element) {
	t.elements[name] = map[string][]string{}
	for _, element := range elements {
		t.elements[name][strings.Join(element.Key, " . ")] = words(strings.Join(element.Value, " "))
	}
}

// Rules are the same over and over.
var split = map[string][]string{}

func words(rule string) []string {
	if split[rule] == nil {
		split[rule] = strings.Fields(rule)
	}
	return split[rule]
}

// verdict is what a rule, a chain or a hook makes of a packet.
type verdict int

const (
	next   verdict = iota // go on
	leave                 // go on in the chain that called
	accept                // go on with the next base chain
	drop
	reject
)

// chain runs the rules of a chain.
func (r *run) chain(name string) verdict {
	// Chains of Services are those with a slash (isServiceChainName in proxier.go).
	if strings.Contains(name, "/") && (strings.HasPrefix(name, "service-") || strings.HasPrefix(name, "local-")) {
		r.policy = name
	}
	if name == "cluster-ips-check" && r.isSpared() {
		return next
	}
	caller := r.in
	defer func() { r.in = caller }()
	for _, rule := range r.tables.chains[name] {
		r.in = name
		switch v := r.rule(rule); v {
		case next:
		case leave:
			return next
		default:
			if r.by == "" && (v == drop || v == reject) {
				r.by = name
			}
			return v
		}
	}
	return next
}

// isSpared is whether a packet that has reached no Service is let through where kube-proxy rejects
// those to cluster IPs, and socklb does not (E12).
func (r *run) isSpared() bool {
	if _, is := r.tables.elements["cluster-ips"][r.daddr.String()]; !is || r.isTranslated {
		return false
	}
	switch {
	case !r.node.cluster.config.RefuseUnknownPorts:
		r.spared = "pass"
	case r.node.isLocal(r.daddr):
		r.spared = "own"
	}
	return r.spared != ""
}

// rule runs the statements of a rule until one does not match. What it does not know it panics about:
// then kube-proxy's rules are other ones than those that this was written for.
func (r *run) rule(rule []string) verdict {
	at := func(words ...string) bool {
		for i, word := range words {
			if i >= len(rule) || rule[i] != word {
				return false
			}
		}
		return true
	}
	for len(rule) > 0 {
		used, matches := 0, true
		switch {
		case at("drop"):
			return drop
		case at("reject"):
			return reject
		case at("return"):
			return leave
		case at("jump"):
			if v := r.chain(rule[1]); v != next {
				return v
			}
			used = 2
		case at("goto"):
			if v := r.chain(rule[1]); v != next {
				return v
			}
			return leave
		case at("ct", "state", "new"):
			used = 3
		case at("ct", "status", "dnat"):
			used, matches = 3, r.isTranslated
		case at("fib", "daddr", "type", "local"):
			used, matches = 4, r.node.isLocal(r.daddr)
		case at("fib", "saddr", "type", "local"):
			used, matches = 4, r.node.isLocal(r.saddr)
		case at("iifname"):
			used, matches = r.iifname(rule[1:])
		case at("mark", "and"):
			used, matches = 5, rule[3] == "!=" && rule[4] == "0" && r.mark&number(rule[2]) != 0
		case at("mark", "set", "mark", "or"):
			used = 5
			r.mark |= number(rule[4])
			// The one rule there that marks asks for @cluster-ips.
			r.byAddress, r.byOther = r.byAddress || r.in == "services", r.byOther || r.in != "services"
		case at("mark", "set", "mark", "xor"):
			used = 5
			r.mark ^= number(rule[4])
		case at("masquerade", "fully-random"):
			// Who was marked by address alone may be a hairpin besides: that rule comes later.
			isByAddress := r.byAddress && !r.byOther && !r.isMasqueraded
			r.isMasqueraded = true
			if !isByAddress {
				r.byOther = true
				return accept
			}
			used = 2
		case at("update"):
			// update @SET { ip saddr }
			used = 6
			r.affinity = int(r.tables.timeouts[rule[1][1:]] / time.Second)
			r.affinitySet = rule[1][1:]
		case at("numgen", "random", "mod"):
			// numgen random mod N vmap { 0 : goto CHAIN , … }
			rule = list(rule[5:])[r.choose(number(rule[3]))][2:]
			continue
		case at("dnat", "to"):
			r.translate(netip.MustParseAddrPort(rule[2]))
			return accept
		case at("dnat"):
			// dnat ip addr . port to numgen random mod N map { 0 : ADDRESS . PORT , … }
			entry := list(rule[11:])[r.choose(number(rule[9]))]
			r.translate(netip.AddrPortFrom(netip.MustParseAddr(entry[2]), uint16(number(entry[4]))))
			return accept
		default:
			used, matches = r.lookUp(rule)
			if used < 0 {
				// A verdict map had an element, which is a statement.
				rule = r.found
				continue
			}
		}
		if !matches {
			return next
		}
		rule = rule[used:]
	}
	return next
}

// iifname matches NAME or != NAME, where NAME may end in a *.
func (r *run) iifname(rule []string) (used int, matches bool) {
	wanted := true
	used = 2
	if rule[0] == "!=" {
		wanted, rule, used = false, rule[1:], 3
	}
	prefix, isPrefix := strings.CutSuffix(rule[0], "*")
	is := r.iif == prefix || isPrefix && strings.HasPrefix(r.iif, prefix)
	return used, is == wanted
}

// lookUp matches fields of the packet with what stands behind them: a value, a range, a list of them, a
// set, or a verdict map. What is found in the latter stands in r.found, and used is negative.
func (r *run) lookUp(rule []string) (used int, matches bool) {
	var fields []string
	for {
		value, words := r.field(rule[used:])
		fields = append(fields, value)
		used += words
		if rule[used] != "." {
			break
		}
		used++
	}
	key := strings.Join(fields, " . ")
	wanted := true
	if rule[used] == "!=" {
		wanted = false
		used++
	}
	switch operand := rule[used]; {
	case operand == "vmap":
		found, ok := r.tables.elements[rule[used+1][1:]][key]
		if !ok {
			return used + 2, false
		}
		r.found = found
		return -1, true
	case strings.HasPrefix(operand, "@"):
		elements, ok := r.tables.elements[operand[1:]]
		if !ok {
			panic("no set " + operand)
		}
		_, is := elements[key]
		if _, isAffinity := r.tables.clients[operand[1:]]; isAffinity {
			is = r.remembers(operand[1:])
		}
		return used + 1, is == wanted
	case operand == "{":
		is := false
		for _, entry := range list(rule[used:]) {
			// What knftables takes for one word may be several.
			for _, value := range strings.Split(entry[0], ",") {
				is = is || equals(value, fields)
			}
			used += len(entry) + 1
		}
		return used + 1, is == wanted
	default:
		return used + 1, equals(operand, fields) == wanted
	}
}

// field is a field of the packet, as an element of a set has it, and how many words name it.
func (r *run) field(rule []string) (value string, words int) {
	switch strings.Join(rule[:min(2, len(rule))], " ") {
	case "ip saddr", "ip6 saddr":
		return r.saddr.String(), 2
	case "ip daddr", "ip6 daddr":
		return r.daddr.String(), 2
	case "meta l4proto":
		return r.protocol, 2
	case "th dport":
		return strconv.Itoa(int(r.port)), 2
	}
	panic(fmt.Sprintf("no field: %q", rule))
}

// equals is whether the one field is the value, or in the range.
func equals(value string, fields []string) bool {
	if len(fields) != 1 {
		panic("several fields beside " + value)
	}
	if prefix, err := netip.ParsePrefix(value); err == nil {
		return prefix.Contains(netip.MustParseAddr(fields[0]))
	}
	return value == fields[0]
}

// list is what stands between braces, at the commas.
func list(rule []string) [][]string {
	if rule[0] != "{" {
		panic(fmt.Sprintf("no list: %q", rule))
	}
	var entries [][]string
	first := 1
	for i, word := range rule {
		if word == "," || word == "}" {
			entries = append(entries, rule[first:i])
			first = i + 1
		}
		if word == "}" {
			return entries
		}
	}
	panic(fmt.Sprintf("no end: %q", rule))
}

func number(text string) uint32 {
	n, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		panic(err)
	}
	return uint32(n)
}
