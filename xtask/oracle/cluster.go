package main

import (
	"encoding/json"
	"fmt"
	"sort"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"
	discoveryv1 "k8s.io/kubernetes/pkg/apis/discovery/v1"
	"k8s.io/kubernetes/pkg/proxy/apis"
)

// Cluster is what the informers of all kube-proxies know, and the nodes.
type Cluster struct {
	config   *Config
	services map[string]*v1.Service
	slices   map[string]*discovery.EndpointSlice
	objects  map[string]*v1.Node
	nodes    map[string]*Node
	// interfaces are the addresses of the own node's interfaces now; see Config.
	interfaces []string
}

// Op is what the API server's answers say.
type Op struct {
	// Op is
	//   - "apply" or "delete": a watch says so of one object;
	//   - "list": the watch of one kind was lost, and these are all objects of the kind;
	//   - "start": kube-proxy starts, or starts anew, and these are all objects;
	//   - "interfaces": the own node's interfaces have these addresses now.
	Op string `json:"op"`
	// Object is a v1 Service, a v1 Node or a discovery.k8s.io/v1 EndpointSlice.
	Object json.RawMessage `json:"object"`
	// Kind is the one that is listed.
	Kind    string            `json:"kind"`
	Objects []json.RawMessage `json:"objects"`
	// Addresses are those of interfaces.
	Addresses []string `json:"addresses"`
}

// The selectors of ProxyServer.Run in cmd/kube-proxy/app/server.go.
var (
	noProxyName    = lacks(apis.LabelServiceProxyName)
	noHeadless     = lacks(v1.IsHeadlessService)
	hasClusterAddr = fields.OneTermNotEqualSelector("spec.clusterIP", v1.ClusterIPNone)
)

func lacks(label string) labels.Selector {
	requirement, err := labels.NewRequirement(label, selection.DoesNotExist, nil)
	if err != nil {
		panic(err)
	}
	return labels.NewSelector().Add(*requirement)
}

func newCluster(config *Config) *Cluster {
	c := &Cluster{config: config, interfaces: config.Interfaces}
	c.forget()
	return c
}

// forget is what a restart does to the informers.
func (c *Cluster) forget() {
	c.services = map[string]*v1.Service{}
	c.slices = map[string]*discovery.EndpointSlice{}
	c.objects = map[string]*v1.Node{}
}

func decode(text json.RawMessage) (any, error) {
	var is struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(text, &is); err != nil {
		return nil, err
	}
	switch is.Kind {
	case "Service":
		object := &v1.Service{}
		err := json.Unmarshal(text, object)
		corev1.SetObjectDefaults_Service(object)
		return object, err
	case "EndpointSlice":
		object := &discovery.EndpointSlice{}
		err := json.Unmarshal(text, object)
		discoveryv1.SetObjectDefaults_EndpointSlice(object)
		return object, err
	case "Node":
		object := &v1.Node{}
		return object, json.Unmarshal(text, object)
	}
	return nil, fmt.Errorf("an object of kind %q", is.Kind)
}

func (c *Cluster) take(op Op) error {
	switch op.Op {
	case "apply", "delete":
		object, err := decode(op.Object)
		if err == nil {
			c.see(object, op.Op == "delete")
		}
		return err
	case "list":
		return c.list(op)
	case "start":
		return c.start(op)
	case "interfaces":
		c.interfaces = op.Addresses
		c.own().look()
		return nil
	}
	return fmt.Errorf("an op %q", op.Op)
}

// see does what a watch with kube-proxy's selectors does: an object that no longer matches is gone.
func (c *Cluster) see(object any, gone bool) {
	switch object := object.(type) {
	case *v1.Service:
		gone = gone || !noProxyName.Matches(labels.Set(object.Labels)) ||
			!hasClusterAddr.Matches(fields.Set{"spec.clusterIP": object.Spec.ClusterIP})
		before, now := replace(c.services, key(object), object, gone)
		c.tell(func(p *Proxier) { p.service(before, now) })
	case *discovery.EndpointSlice:
		gone = gone || !noHeadless.Matches(labels.Set(object.Labels))
		before, now := replace(c.slices, key(object), object, gone)
		c.tell(func(p *Proxier) { p.slice(before, now) })
	case *v1.Node:
		_, now := replace(c.objects, object.Name, object, gone)
		if now != nil {
			c.node(now.Name).follow(now)
		} else if object.Name != c.config.Node {
			delete(c.nodes, object.Name)
		}
	}
}

// list is what an informer makes of a list: first all that is in it, then what it knew besides.
func (c *Cluster) list(op Op) error {
	gone := map[string]any{}
	switch op.Kind {
	case "Service":
		remember(gone, c.services)
	case "EndpointSlice":
		remember(gone, c.slices)
	case "Node":
		remember(gone, c.objects)
	default:
		return fmt.Errorf("a list of kind %q", op.Kind)
	}
	for _, text := range op.Objects {
		object, err := decode(text)
		if err != nil {
			return err
		}
		delete(gone, key(object))
		c.see(object, false)
	}
	for _, name := range sorted(gone) {
		c.see(gone[name], true)
	}
	return nil
}

// start starts kube-proxy on every node: what earlier ones wrote is still there.
func (c *Cluster) start(op Op) error {
	c.forget()
	for _, text := range op.Objects {
		object, err := decode(text)
		if err != nil {
			return err
		}
		switch object := object.(type) {
		case *v1.Service:
			if noProxyName.Matches(labels.Set(object.Labels)) &&
				hasClusterAddr.Matches(fields.Set{"spec.clusterIP": object.Spec.ClusterIP}) {
				c.services[key(object)] = object
			}
		case *discovery.EndpointSlice:
			if noHeadless.Matches(labels.Set(object.Labels)) {
				c.slices[key(object)] = object
			}
		case *v1.Node:
			c.objects[object.Name] = object
		}
	}
	before := c.nodes
	c.nodes = map[string]*Node{}
	for name := range before {
		if c.objects[name] != nil || name == c.config.Node {
			c.nodes[name] = newNode(c, name, before[name])
		}
	}
	c.node(c.config.Node)
	for name := range c.objects {
		c.node(name)
	}
	return nil
}

// node is the node of that name, with a kube-proxy that starts now unless there is one.
func (c *Cluster) node(name string) *Node {
	if c.nodes == nil {
		c.nodes = map[string]*Node{}
	}
	if c.nodes[name] == nil {
		c.nodes[name] = newNode(c, name, nil)
	}
	return c.nodes[name]
}

func (c *Cluster) own() *Node {
	return c.node(c.config.Node)
}

func (c *Cluster) tell(say func(*Proxier)) {
	for _, node := range c.nodes {
		for _, proxier := range node.proxiers {
			say(proxier)
		}
	}
}

func key(object any) string {
	switch object := object.(type) {
	case *v1.Service:
		return object.Namespace + "/" + object.Name
	case *discovery.EndpointSlice:
		return object.Namespace + "/" + object.Name
	case *v1.Node:
		return object.Name
	}
	panic(fmt.Sprintf("an object %T", object))
}

// replace returns what was known of an object and what is known now.
func replace[T any](all map[string]*T, name string, object *T, gone bool) (before, now *T) {
	before = all[name]
	if gone {
		delete(all, name)
		return before, nil
	}
	all[name] = object
	return before, object
}

func remember[T any](into map[string]any, all map[string]*T) {
	for name, object := range all {
		into[name] = object
	}
}

func sorted[T any](all map[string]T) []string {
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
