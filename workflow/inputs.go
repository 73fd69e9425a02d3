package workflow

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/terraphim/tgr/expr"
)

// maxDispatchInput bounds the inputs of workflow_dispatch together, in bytes, as GitHub does.
const maxDispatchInput = 65_535

// typed converts the text of an input to the type it was declared with. Its error continues "the input 'x' …".
func typed(kind, text string) (any, error) {
	switch kind {
	case "boolean":
		switch text {
		case "true":
			return true, nil
		case "false":
			return false, nil
		}
		return nil, fmt.Errorf("is '%s' and not 'true' or 'false'", clip(text))
	case "number":
		if f, ok := parseNumber(strings.TrimSpace(text)); ok {
			return f, nil
		}
		return nil, fmt.Errorf("is '%s' and not a number", clip(text))
	}
	return text, nil
}

// InputText is the value of an input as the event has it: text, whatever its type.
func InputText(value any) string { return expr.FromAny(value).Text() }

// zero is the value of an input that was neither given nor has a default.
func zero(kind string) any {
	switch kind {
	case "boolean":
		return false
	case "number":
		return 0.0
	}
	return ""
}

// dispatchValues checks the inputs that came with a workflow_dispatch event against the declared ones.
func (r *reader) dispatchValues(w *Workflow, given map[string]string) map[string]any {
	at := Pos{}
	if e := w.On("workflow_dispatch"); e != nil {
		at = e.Pos
	}
	out := make(map[string]any, len(w.Dispatch))
	size := 0
	for _, in := range w.Dispatch {
		value, ok := lookup(given, in.Name)
		size += len(value)
		if !ok || value == "" && in.HasDefault && in.Type != "string" {
			if in.Required && !in.HasDefault {
				r.report(at, SeverityError, "inputs", fmt.Sprintf("the input '%s' is required", in.Name))
			}
			value = in.Default
			if !in.HasDefault {
				out[in.Name] = zero(in.Type)
				continue
			}
		}
		v, err := typed(in.Type, value)
		if err == nil && in.Type == "choice" && !slices.Contains(in.Options, value) && (value != "" || in.Required) {
			err = fmt.Errorf("is '%s' and not one of %s", clip(value), list(in.Options))
		}
		if err != nil {
			r.report(at, SeverityError, "inputs", fmt.Sprintf("the input '%s' %v", in.Name, err))
			continue
		}
		out[in.Name] = v
	}
	for _, name := range sortedKeys(given) {
		if !slices.ContainsFunc(w.Dispatch, func(in Input) bool { return strings.EqualFold(in.Name, name) }) {
			r.report(at, SeverityError, "inputs", fmt.Sprintf("the workflow has no input '%s'%s", clip(name), similar(name, inputNames(w.Dispatch))))
		}
	}
	if size > maxDispatchInput {
		r.report(at, SeverityError, "inputs", "the inputs are longer than "+strconv.Itoa(maxDispatchInput)+" bytes together")
	}
	return out
}

// lookup finds a name without regard to case.
func lookup[V any](m map[string]V, name string) (V, bool) {
	if v, ok := m[name]; ok {
		return v, true
	}
	for _, k := range sortedKeys(m) {
		if strings.EqualFold(k, name) {
			return m[k], true
		}
	}
	var none V
	return none, false
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func inputNames(inputs []Input) []string {
	out := make([]string, len(inputs))
	for i := range inputs {
		out[i] = inputs[i].Name
	}
	return out
}
