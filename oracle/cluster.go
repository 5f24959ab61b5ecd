package main

import (
	"encoding/json"
	"fmt"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	corev1 "k8s.io/kubernetes/pkg/apis/core/v1"
	discoveryv1 "k8s.io/kubernetes/pkg/apis/discovery/v1"
	"k8s.io/kubernetes/pkg/proxy/apis"
)

// Cluster is what the informers know, and a proxier of each family on each node.
type Cluster struct {
	node     string
	services map[string]*v1.Service
	slices   map[string]*discovery.EndpointSlice
	nodes    map[string]*v1.Node
	proxiers map[string][]*Proxier
}

var families = []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}

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

// newCluster starts a kube-proxy on every node that ever appears in the case.
func newCluster(asked *Case) (*Cluster, error) {
	c := &Cluster{
		node:     asked.Node,
		services: map[string]*v1.Service{},
		slices:   map[string]*discovery.EndpointSlice{},
		nodes:    map[string]*v1.Node{},
		proxiers: map[string][]*Proxier{},
	}
	c.start(asked.Node)
	for _, step := range asked.Steps {
		for _, op := range step {
			object, err := decode(op.Object)
			if err != nil {
				return nil, err
			}
			if node, ok := object.(*v1.Node); ok {
				c.start(node.Name)
			}
		}
	}
	return c, nil
}

func (c *Cluster) start(node string) {
	if c.proxiers[node] == nil {
		for _, family := range families {
			c.proxiers[node] = append(c.proxiers[node], newProxier(node, family))
		}
	}
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

// take does what a watch with kube-proxy's selectors does: an object that no longer matches is gone.
func (c *Cluster) take(op Op) error {
	object, err := decode(op.Object)
	if err != nil {
		return err
	}
	gone := op.Op == "delete"
	switch object := object.(type) {
	case *v1.Service:
		matches := noProxyName.Matches(labels.Set(object.Labels)) &&
			hasClusterAddr.Matches(fields.Set{"spec.clusterIP": object.Spec.ClusterIP})
		before, now := replace(c.services, object.Namespace+"/"+object.Name, object, gone || !matches)
		c.tell(func(p *Proxier) { p.serviceChanges.Update(before, now) })
	case *discovery.EndpointSlice:
		matches := noHeadless.Matches(labels.Set(object.Labels))
		before, now := replace(c.slices, object.Namespace+"/"+object.Name, object, gone || !matches)
		if now != nil {
			c.tell(func(p *Proxier) { p.endpointsChanges.EndpointSliceUpdate(now, false) })
		} else if before != nil {
			c.tell(func(p *Proxier) { p.endpointsChanges.EndpointSliceUpdate(before, true) })
		}
	case *v1.Node:
		replace(c.nodes, object.Name, object, gone)
		// As NodeTopologyConfig: a Node that goes leaves its zone behind.
		for _, proxier := range c.proxiers[object.Name] {
			if !gone {
				proxier.see(object)
				proxier.topology = map[string]string{}
				if zone, ok := object.Labels[v1.LabelTopologyZone]; ok {
					proxier.topology[v1.LabelTopologyZone] = zone
				}
			}
		}
	}
	return nil
}

func (c *Cluster) tell(say func(*Proxier)) {
	for _, proxiers := range c.proxiers {
		for _, proxier := range proxiers {
			say(proxier)
		}
	}
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
