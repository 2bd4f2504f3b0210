// Package deploy has the configurations of docs/scale-out.md. Its tests hold the Kubernetes manifests to Kubernetes' types and to what the
// server is; e2e has nginx.conf and the server's configuration tried.
package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
	kubejson "sigs.k8s.io/json"
)

// manifest is a document of a file, decoded into its type.
type manifest struct {
	file, kind, name string
	object           any
}

// kinds are the types that a manifest may be of.
var kinds = map[string]func() any{
	"v1 Secret":                              func() any { return new(core.Secret) },
	"v1 ConfigMap":                           func() any { return new(core.ConfigMap) },
	"v1 Service":                             func() any { return new(core.Service) },
	"apps/v1 Deployment":                     func() any { return new(apps.Deployment) },
	"apps/v1 StatefulSet":                    func() any { return new(apps.StatefulSet) },
	"policy/v1 PodDisruptionBudget":          func() any { return new(policy.PodDisruptionBudget) },
	"autoscaling/v2 HorizontalPodAutoscaler": func() any { return new(autoscaling.HorizontalPodAutoscaler) },
	"networking.k8s.io/v1 Ingress":           func() any { return new(networking.Ingress) },
	"networking.k8s.io/v1 NetworkPolicy":     func() any { return new(networking.NetworkPolicy) },
}

// parse decodes documents strictly: a field that the type does not have, or of another type, is an error.
func parse(file string, text []byte) ([]manifest, error) {
	var all []manifest
	documents := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var tree map[string]any
		if err := documents.Decode(&tree); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		kind, _ := tree["kind"].(string)
		version, _ := tree["apiVersion"].(string)
		make, ok := kinds[version+" "+kind]
		if !ok {
			return nil, fmt.Errorf("%s: no kind is %s %s", file, version, kind)
		}
		data, err := json.Marshal(tree)
		if err != nil {
			return nil, err
		}
		m := manifest{file: file, kind: kind, object: make()}
		wrong, err := kubejson.UnmarshalStrict(data, m.object)
		if err = errors.Join(append(wrong, err)...); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", file, kind, err)
		}
		m.name = tree["metadata"].(map[string]any)["name"].(string)
		all = append(all, m)
	}
}

func manifests(t *testing.T) []manifest {
	t.Helper()
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no manifests", err)
	}
	var all []manifest
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found, err := parse(file, text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

func TestStrict(t *testing.T) {
	for says, text := range map[string]string{
		`field "spec.ports[0].targetport"`: "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: [{port: 80, targetport: 8080}]\n",
		"cannot unmarshal string":          "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: two}\n",
		"no kind is v1 Deployment":         "apiVersion: v1\nkind: Deployment\nmetadata: {name: a}\n",
	} {
		if _, err := parse("test", []byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, should say %s", text, err, says)
		}
	}
}

// What refers to something refers to what is there.
func TestManifests(t *testing.T) {
	all := manifests(t)
	there := func(kind, name string) bool {
		return slices.ContainsFunc(all, func(m manifest) bool { return m.kind == kind && m.name == name })
	}
	need := func(of manifest, kind, name string) {
		t.Helper()
		if !there(kind, name) {
			t.Errorf("%s: %s %s names the %s %q, which is not there", of.file, of.kind, of.name, kind, name)
		}
	}
	pods := map[string]core.PodTemplateSpec{} // by workload
	for _, m := range all {
		switch o := m.object.(type) {
		case *apps.Deployment:
			pods[m.name] = o.Spec.Template
			selects(t, m, o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
		case *apps.StatefulSet:
			pods[m.name] = o.Spec.Template
			selects(t, m, o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
			need(m, "Service", o.Spec.ServiceName)
		}
	}
	for _, m := range all {
		switch o := m.object.(type) {
		case *core.Service:
			pod := pods[m.name]
			selects(t, m, o.Spec.Selector, pod.Labels)
			for _, p := range o.Spec.Ports {
				if target := p.TargetPort.StrVal; target != "" && !hasPort(pod, target) {
					t.Errorf("%s: service %s: no container has a port %q", m.file, m.name, target)
				}
			}
		case *policy.PodDisruptionBudget:
			selects(t, m, o.Spec.Selector.MatchLabels, pods[m.name].Labels)
		case *networking.NetworkPolicy:
			selects(t, m, o.Spec.PodSelector.MatchLabels, pods[m.name].Labels)
		case *autoscaling.HorizontalPodAutoscaler:
			need(m, o.Spec.ScaleTargetRef.Kind, o.Spec.ScaleTargetRef.Name)
			for _, metric := range o.Spec.Metrics {
				if metric.Pods != nil && !strings.Contains(adapterRules(all), "as: "+metric.Pods.Metric.Name+"}") {
					t.Errorf("%s: no rule of the adapter makes %s", m.file, metric.Pods.Metric.Name)
				}
			}
		case *networking.Ingress:
			for _, rule := range o.Spec.Rules {
				for _, path := range rule.HTTP.Paths {
					need(m, "Service", path.Backend.Service.Name)
				}
			}
		case *apps.Deployment:
			workload(t, m, need, o.Spec.Template)
		case *apps.StatefulSet:
			workload(t, m, need, o.Spec.Template)
		}
	}
}

func selects(t *testing.T, m manifest, selector, of map[string]string) {
	t.Helper()
	if len(selector) == 0 || !labels.SelectorFromSet(selector).Matches(labels.Set(of)) {
		t.Errorf("%s: %s %s selects %v, and the pods have %v", m.file, m.kind, m.name, selector, of)
	}
}

func hasPort(pod core.PodTemplateSpec, name string) bool {
	return slices.ContainsFunc(pod.Spec.Containers, func(c core.Container) bool {
		return slices.ContainsFunc(c.Ports, func(p core.ContainerPort) bool { return p.Name == name })
	})
}

// workload looks at what the pods of a Deployment or StatefulSet refer to.
func workload(t *testing.T, m manifest, need func(manifest, string, string), pod core.PodTemplateSpec) {
	t.Helper()
	for _, v := range pod.Spec.Volumes {
		if v.ConfigMap != nil {
			need(m, "ConfigMap", v.ConfigMap.Name)
		}
		if v.Secret != nil {
			need(m, "Secret", v.Secret.SecretName)
		}
	}
	for _, c := range pod.Spec.Containers {
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				need(m, "Secret", e.ValueFrom.SecretKeyRef.Name)
			}
		}
		for _, probe := range []*core.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if probe != nil && probe.HTTPGet != nil && !hasPort(pod, probe.HTTPGet.Port.StrVal) {
				t.Errorf("%s: %s %s: a probe asks port %s, which the container does not have", m.file, m.kind, m.name, probe.HTTPGet.Port.StrVal)
			}
		}
	}
}

func adapterRules(all []manifest) string {
	for _, m := range all {
		if c, ok := m.object.(*core.ConfigMap); ok && m.name == "anytime-adapter-rules" {
			return c.Data["config.yaml"]
		}
	}
	return ""
}

// The rules are YAML, and made of metrics that the server has; a test holds docs/observability.md to those.
func TestAdapterRules(t *testing.T) {
	text := adapterRules(manifests(t))
	var rules struct {
		Rules []struct {
			SeriesQuery, MetricsQuery string
			Resources, Name           map[string]any
		}
	}
	if err := yaml.Unmarshal([]byte(text), &rules); err != nil || len(rules.Rules) == 0 {
		t.Fatal(rules, err)
	}
	documented, err := os.ReadFile("../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	queries := regexp.MustCompile(`as: anytime_\w+`).ReplaceAllString(text, "")
	names := regexp.MustCompile(`anytime_\w+`).FindAllString(queries, -1)
	if len(names) < 3 {
		t.Errorf("the rules are made of %v", names)
	}
	for _, name := range names {
		name = strings.TrimSuffix(strings.TrimSuffix(name, "_count"), "_bucket")
		if !bytes.Contains(documented, []byte("`"+name)) {
			t.Errorf("the server has no metric %s", name)
		}
	}
}

// The time that a pod is given to end is enough for what it does then.
func TestGrace(t *testing.T) {
	all := manifests(t)
	var config struct{ Grace string }
	for _, m := range all {
		if c, ok := m.object.(*core.ConfigMap); ok && m.name == "anytime" {
			if err := yaml.Unmarshal([]byte(c.Data["config.yaml"]), &config); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, m := range all {
		if d, ok := m.object.(*apps.Deployment); ok {
			pod := d.Spec.Template.Spec
			waits := pod.Containers[0].Lifecycle.PreStop.Sleep.Seconds
			if config.Grace != "60s" || *pod.TerminationGracePeriodSeconds < waits+60+5 {
				t.Errorf("killed after %d s: preStop takes %d s, runs may take %s", *pod.TerminationGracePeriodSeconds, waits, config.Grace)
			}
		}
	}
}
