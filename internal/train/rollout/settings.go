package rollout

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// Differences are the settings by which two values of one JSON differ, for an error: those of the one, and the same ones of the other.
func Differences(one, other any) (string, string) {
	a, b := flat(one), flat(other)
	keys := maps.Clone(a)
	maps.Copy(keys, b)
	var of, than []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if a[key] != b[key] {
			of, than = append(of, setting(key, a[key])), append(than, setting(key, b[key]))
		}
	}
	return strings.Join(of, ", "), strings.Join(than, ", ")
}

func setting(key, value string) string {
	if value == "" {
		return "no " + key
	}
	return key + " " + value
}

// flat has the values of a JSON object, and of those in it, by their keys joined with dots.
func flat(v any) map[string]string {
	text, _ := json.Marshal(v)
	var object map[string]json.RawMessage
	if json.Unmarshal(text, &object) != nil || object == nil {
		return map[string]string{"": string(text)}
	}
	all := map[string]string{}
	for key, value := range object {
		for inner, text := range flat(value) {
			all[strings.TrimSuffix(key+"."+inner, ".")] = text
		}
	}
	return all
}
