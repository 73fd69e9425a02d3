package runner

import (
	"context"
	"errors"
	"slices"

	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// makeInner makes the units of a composite action's steps.
func (r *run) makeInner(u *unit) error {
	if u.inner != nil {
		return nil
	}
	if u.sc.depth+1 > r.config.Limits.Nesting {
		return workflowError(r.file(u.sc), u.src.Pos, "uses: actions are nested more than %d deep", r.config.Limits.Nesting)
	}
	sc := &scope{parent: u.sc, action: u.action, caller: u.actionName(), steps: expr.NewObject(), depth: u.sc.depth + 1}
	inner, err := r.units(u.action.meta.Runs.Steps, sc, u.action.file())
	if err != nil {
		return err
	}
	u.inner, u.innerIn = inner, sc
	return nil
}

// enter gives a composite action's scope what the step that uses it hands in, and returns its inputs.
func (r *run) enter(u *unit) ([]pair, error) {
	inputs, err := r.inputs(u)
	if err != nil {
		return nil, err
	}
	if err := r.makeInner(u); err != nil {
		return nil, err
	}
	u.innerIn.inputs = inputsContext(inputs)
	u.innerIn.env = slices.Concat(u.sc.env, u.env)
	u.innerIn.survives = u.survives
	for _, in := range u.inner {
		in.rec = u.rec
	}
	return inputs, nil
}

// composite runs the steps of a composite action and evaluates its outputs.
func (r *run) composite(u *unit) error {
	inputs, err := r.enter(u)
	if err != nil {
		return err
	}
	r.usesHeader(u, shownInputs(inputs))
	sc := u.innerIn
	for _, in := range u.inner {
		if err := r.step(u.limit, in); err != nil {
			return err
		}
	}
	u.sc.register(u)
	for _, o := range u.action.meta.Outputs {
		value, err := r.text(o.Value, sc, nil, workflow.Pos{}, "outputs."+o.Name)
		if err != nil {
			return err
		}
		if err := u.setOutput(o.Name, value); err != nil {
			return err
		}
	}
	switch {
	case errors.Is(context.Cause(u.limit), errStepTimeout):
		return errStepTimeout
	case sc.cancelled:
		return errCancelled
	case sc.failed:
		return sc.cause
	}
	if code := 0; u.rec.ExitCode != nil { // the failures of its steps were forgiven
		u.rec.ExitCode = &code
	}
	return nil
}
