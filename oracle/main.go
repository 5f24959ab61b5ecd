// What kube-proxy would do: the other side of socklb's differential test.
//
// Reads cases from stdin and writes what follows from them to stdout, one JSON value in a line each.
// A case is a node's name and steps; a step is a list of objects that appear, change or go. After
// each step comes one line with every frontend that a socket on that node can dial, and where it
// leads.
//
// All decisions are kube-proxy's own: the API server's defaults, the selectors of its informers, its
// trackers and maps, CategorizeEndpoints. What is written here is only what its proxiers do with the
// answers; it follows syncProxyRules in pkg/proxy/nftables/proxier.go of the same version, for
// clients in pods of the node and on the node itself.
//
// Built by `cargo xtask oracle`, which makes go.mod and go.sum.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// Case is one line of input.
type Case struct {
	// Node is the name of the node that the sockets are on.
	Node  string `json:"node"`
	Steps [][]Op `json:"steps"`
}

// Op is what a watch says of one object.
type Op struct {
	// Op is "apply" or "delete".
	Op string `json:"op"`
	// Object is a v1 Service, a v1 Node or a discovery.k8s.io/v1 EndpointSlice.
	Object json.RawMessage `json:"object"`
}

func main() {
	klog.SetLogger(logr.Discard())
	if err := answer(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

func answer(from io.Reader, to io.Writer) error {
	in := json.NewDecoder(bufio.NewReaderSize(from, 1<<20))
	buffer := bufio.NewWriterSize(to, 1<<20)
	out := json.NewEncoder(buffer)
	for {
		var asked Case
		if err := in.Decode(&asked); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		cluster, err := newCluster(&asked)
		if err != nil {
			return err
		}
		for _, step := range asked.Steps {
			for _, op := range step {
				if err := cluster.take(op); err != nil {
					return err
				}
			}
			if err := out.Encode(cluster.look()); err != nil {
				return err
			}
		}
		if err := buffer.Flush(); err != nil {
			return err
		}
	}
}
