package workflow

import (
	"fmt"
	"maps"

	"github.com/terraphim/tgr/expr"
)

// EvalCall evaluates what one instance of a job passes to the reusable workflow it calls: the inputs, with the types
// and defaults that are declared there, and the secrets; a workflow of another owner inherits none. The job's Call must not be nil. An error is an *EvalError.
func (j *Job) EvalCall(p *Plan, s *Scope, in *Instance) (inputs map[string]any, secrets map[string]string, err error) {
	ev := j.evaluation(p, s)
	matrix := expr.Null()
	if len(in.Matrix) > 0 {
		if matrix, err = expr.FromJSON(in.Matrix); err != nil {
			return nil, nil, ev.fail("strategy", err)
		}
	}
	ev.env.Contexts.Set("matrix", matrix)
	ev.env.Contexts.Set("strategy", strategyValue(in))
	if inputs, err = ev.callInputs(j); err != nil {
		return nil, nil, err
	}
	if j.SecretsInherit && !j.Call.Foreign {
		return inputs, maps.Clone(s.Secrets), nil
	}
	given, err := ev.entries("secrets", j.Secrets)
	if err != nil {
		return nil, nil, err
	}
	secrets = map[string]string{}
	for _, name := range given.Keys() {
		v, _ := field(given, name)
		if secrets[name], err = ev.scalarText("secrets."+name, v); err != nil {
			return nil, nil, err
		}
	}
	return inputs, secrets, nil
}

func (ev *evaluation) callInputs(j *Job) (map[string]any, error) {
	given, err := ev.entries("with", j.With)
	if err != nil {
		return nil, err
	}
	for _, name := range given.Keys() {
		if findInput(j.Call.Inputs, name) == nil {
			return nil, ev.fail("with."+name, fmt.Errorf("'%s' is not defined in the referenced workflow%s", clip(name), similar(name, inputNames(j.Call.Inputs))))
		}
	}
	out := map[string]any{}
	for _, def := range j.Call.Inputs {
		key := "with." + def.Name
		v, ok := field(given, def.Name)
		if !ok {
			switch {
			case def.Required && !def.HasDefault:
				return nil, ev.fail("uses", fmt.Errorf("the input '%s' is required, but not provided while calling", def.Name))
			case !def.HasDefault:
				out[def.Name] = zero(def.Type)
				continue
			}
			if v, err = ev.value(key, def.Default); err != nil {
				return nil, err
			}
		}
		text, err := ev.scalarText(key, v)
		if err != nil {
			return nil, err
		}
		if out[def.Name], err = typed(def.Type, text); err != nil {
			return nil, ev.fail(key, fmt.Errorf("the input '%s' %w", def.Name, err))
		}
	}
	return out, nil
}

// entries evaluates a list of named strings.
func (ev *evaluation) entries(key string, list []EnvVar) (*expr.Object, error) {
	out := expr.NewObject()
	for _, e := range list {
		v, err := ev.value(key+"."+e.Name, e.Value)
		if err != nil {
			return nil, err
		}
		out.Set(e.Name, v)
	}
	return out, nil
}

// EvalOutputs evaluates the outputs of a called workflow once its jobs are done. s is the scope of the called
// workflow, with the inputs it was given; jobs are its jobs by key. Together they have at most
// MaxOutputs bytes. An error is an *EvalError.
func (c *Call) EvalOutputs(s *Scope, jobs map[string]Need) (map[string]string, error) {
	ev := c.Plan.evaluation(s)
	ev.file, ev.key = c.File, "on.workflow_call.outputs."
	ev.env.Contexts.Set("jobs", needsValue(jobs))
	out, size := make(map[string]string, len(c.Outputs)), 0
	for _, o := range c.Outputs {
		text, err := ev.text(o.Name, o.Value)
		if err != nil {
			return nil, err
		}
		if size += OutputBytes(o.Name, text); size > MaxOutputs {
			return nil, ev.fail(o.Name, fmt.Errorf("with it the outputs have more than %d bytes, in UTF-16", MaxOutputs))
		}
		out[o.Name] = text
	}
	return out, nil
}
