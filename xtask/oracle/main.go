// What kube-proxy would do: the other side of socklb's differential test.
//
// Reads requests from stdin and writes answers to stdout, one JSON value in a line each:
//
//	{"start": Config}       a cluster without objects                 no answer
//	{"step": [Op, …]}       what kube-proxy is told; it then syncs    State
//	{"begin": [Flow, …]}    UDP flows that are there from now on      no answer
//	{"ask": [Question, …]}  packets, and what becomes of each         [Answer, …]
//
// On each node runs kube-proxy's own nftables Proxier, made by its own NewProxier, told by its own
// handlers; what it writes goes to knftables' tables in memory. What is written here is what stands
// around it: the informers and their selectors (cluster.go), the nodes (node.go), and the kernel that
// a packet passes (trace.go, rule.go), which knows what kube-proxy's rules are made of, and stops at
// anything else.
//
// Built by `cargo xtask oracle`, which makes go.mod and go.sum, and adds kube-proxy's own sources to
// the directory nftables.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/metrics"
)

// Request is one line of input: one of the four.
type Request struct {
	Start *Config     `json:"start"`
	Step  *[]Op       `json:"step"`
	Begin *[]Flow     `json:"begin"`
	Ask   *[]Question `json:"ask"`
}

// Config is what does not change in the course of a case.
type Config struct {
	// Node is the name of the node that the clients are on.
	Node string `json:"node"`
	// Interfaces are at first the addresses of that node's interfaces, beside those that its status
	// names.
	Interfaces []string `json:"interfaces"`
	// Families are those that the machines have: IPv4, IPv6.
	Families []string `json:"families"`
	// NodePortAddresses is the flag of that name, on all nodes; see nodePortAddresses in node.go.
	NodePortAddresses []string `json:"nodePortAddresses"`
	// DetectLocal is --detect-local-mode: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.
	DetectLocal string `json:"detectLocal"`
	// ClusterCIDRs are --cluster-cidr, at most one of a family, for ClusterCIDR: in a family without one
	// kube-proxy tells no pods from strangers.
	ClusterCIDRs []string `json:"clusterCIDRs"`
	// PodCIDRs are the node's, one of a family, for NodeCIDR.
	PodCIDRs []string `json:"podCIDRs"`
	// MasqueradeAll is the flag of that name.
	MasqueradeAll bool `json:"masqueradeAll"`
	// RefuseUnknownPorts is whether a port that a cluster IP lacks is refused, as kube-proxy does.
	RefuseUnknownPorts bool `json:"refuseUnknownPorts"`
}

func main() {
	klog.SetLogger(logr.Discard())
	metrics.RegisterMetrics(kubeproxyconfig.ProxyModeNFTables)
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

func serve(from io.Reader, to io.Writer) error {
	in := json.NewDecoder(bufio.NewReaderSize(from, 1<<20))
	buffer := bufio.NewWriterSize(to, 1<<20)
	out := json.NewEncoder(buffer)
	var cluster *Cluster
	for {
		var request Request
		if err := in.Decode(&request); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		answer, err := cluster.answer(&request)
		switch {
		case err != nil:
			return err
		case request.Start != nil:
			cluster = newCluster(request.Start)
			continue
		case request.Begin != nil:
			continue
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
		if err := buffer.Flush(); err != nil {
			return err
		}
	}
}

func (c *Cluster) answer(request *Request) (any, error) {
	switch {
	case request.Start != nil:
		return nil, nil
	case c == nil:
		return nil, fmt.Errorf("no case was started")
	case request.Step != nil:
		for _, op := range *request.Step {
			if err := c.take(op); err != nil {
				return nil, err
			}
		}
		return c.state()
	case request.Begin != nil:
		for _, flow := range *request.Begin {
			if err := c.begin(flow); err != nil {
				return nil, fmt.Errorf("%+v: %w", flow, err)
			}
		}
		return nil, nil
	case request.Ask != nil:
		answers := make([]Answer, 0, len(*request.Ask))
		for _, question := range *request.Ask {
			answer, err := c.ask(question)
			if err != nil {
				return nil, fmt.Errorf("%+v: %w", question, err)
			}
			answers = append(answers, answer)
		}
		return answers, nil
	}
	return nil, fmt.Errorf("an empty request")
}
