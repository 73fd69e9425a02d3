package runner

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// unit is one step of a job or of a composite action, together with the state that its pre, main and post share.
type unit struct {
	run *run
	sc  *scope
	src *workflow.Step
	rec *record // where it is shown; the steps of an action share that of the step that uses it

	env      []pair // its own env, evaluated
	survives bool   // its condition holds for a cancelled job, too
	limit    context.Context
	site     site    // where its process runs; nil: where the job's do
	dir      string  // of the command files of the process that runs
	action   *action // what it uses; nil: a script, or not loaded yet
	outputs  vars
	state    vars // of its action: what save-state said, for the post step
	failures []string

	background bool    // the steps after it do not wait for it
	group      []*unit // of a step of parallel steps: these

	pre     *hook   // what is to run before the job's first step
	warned  bool    // of its inputs
	posted  bool    // what is to run after the job is registered
	inner   []*unit // steps of the composite action that it uses
	innerIn *scope  // their scope
}

// hook is a pre step that is shown on its own.
type hook struct{ rec *record }

// errCancelled is what a step ends with when the job was cancelled.
var errCancelled = errors.New("the operation was canceled")

// maxUnits bounds the steps of a job, those of its actions included.
const maxUnits = 10_000

// units makes a unit of each step and refuses what this runner does not do.
func (r *run) units(steps []workflow.Step, sc *scope, file string) ([]*unit, error) {
	if r.made.units += len(steps); r.made.units > maxUnits {
		return nil, workflowError(file, workflow.Pos{}, "the job and its actions have more than %d steps", maxUnits)
	}
	units := make([]*unit, 0, len(steps))
	for i := range steps {
		s := &steps[i]
		u := &unit{run: r, sc: sc, src: s, background: s.Background}
		if sc.parent != nil && (u.background || u.controls()) {
			return nil, workflowError(file, s.Pos, "actions have no steps with background, wait, wait-all, cancel or parallel")
		}
		if s.Parallel != nil { // the group runs in the background, and the step itself waits for it
			var err error
			if u.group, err = r.units(s.Parallel, sc, file); err != nil {
				return nil, err
			}
			for _, g := range u.group {
				g.background = true
			}
			units = append(units, u.group...)
		}
		units = append(units, u)
	}
	return units, nil
}

// controls reports whether the step runs nothing, but waits for steps or cancels one.
func (u *unit) controls() bool {
	return u.src.Wait != nil || u.src.WaitAll || u.src.Cancel != "" || u.src.Parallel != nil
}

// fail makes the step fail when its process has ended.
func (u *unit) fail(message string) {
	u.run.error(u.rec, message)
	u.failures = append(u.failures, message)
}

// failing is how a process has failed: by itself, or by what it printed or wrote.
func (u *unit) failing(err error) error {
	if err == nil && len(u.failures) > 0 {
		return &fault{blame: tgr.BlameUser, message: u.failures[0], logged: true}
	}
	return err
}

// setOutput and saveState keep what a step hands on.

func (u *unit) setOutput(name, value string) error {
	u.outputs.set(name, value)
	if int64(u.outputs.bytes) > u.run.config.Limits.FileBytes {
		return userError("the step's outputs are larger than %d bytes", u.run.config.Limits.FileBytes)
	}
	return nil
}

func (u *unit) saveState(name, value string) error {
	u.state.set(name, value)
	if int64(u.state.bytes) > u.run.config.Limits.FileBytes {
		return userError("the step's state is larger than %d bytes", u.run.config.Limits.FileBytes)
	}
	return nil
}

// ending is how a step has ended.
type ending struct {
	outcome    tgr.Conclusion
	conclusion tgr.Conclusion // the outcome, unless continue-on-error forgives it
	reason     string
	blame      tgr.Blame // of a failure
	stopped    bool      // it was in the background, and another step has cancelled it
}

// ended is the ending of what no continue-on-error forgives.
func ended(c tgr.Conclusion, reason string) ending {
	return ending{outcome: c, conclusion: c, reason: reason}
}

// step runs one step from its condition to its conclusion. An error is a fault of ours.
func (r *run) step(base context.Context, u *unit) error {
	switch {
	case u.controls():
		return r.control(u)
	case u.background:
		return r.launch(u)
	}
	run, err := r.admit(u)
	if err == nil && !run {
		r.conclude(u, ended(tgr.Skipped, ""))
		return nil
	}
	if u.top() {
		if r.config.Before != nil && err == nil && !r.taped.replaying() {
			r.config.Before(base, u.rec.Number, u.rec.Name)
		}
		r.begin(u.rec)
	}
	if err == nil {
		err = r.attempt(base, u)
	}
	e, ours := r.judge(u, err)
	if ours != nil {
		return ours
	}
	r.fold(u, e)
	r.conclude(u, e)
	return nil
}

// judge turns what attempt returned into how the step has ended. An error is a fault of ours.
func (r *run) judge(u *unit, err error) (ending, error) {
	outcome, reason, ours := r.verdict(u, err)
	if ours != nil {
		return ending{}, ours
	}
	e := ending{outcome: outcome, reason: reason, stopped: outcome == tgr.Cancelled && u.stoppedBy() != nil}
	if outcome == tgr.Failure {
		e.blame = blameOfStep(err)
	}
	return r.forgive(u, e)
}

// forgive says what a step's outcome means where it says continue-on-error.
func (r *run) forgive(u *unit, e ending) (ending, error) {
	if e.conclusion = e.outcome; e.outcome != tgr.Failure {
		return e, nil
	}
	forgiven, err := r.flag(u.src.ContinueOnError, u, "continue-on-error")
	switch {
	case err != nil && blameOf(err) == tgr.BlameOurs:
		return e, err
	case err != nil:
		r.error(u.rec, err.Error())
	case forgiven:
		e.conclusion = tgr.Success
	}
	return e, nil
}

// fold makes the step's failure that of what it is part of.
func (r *run) fold(u *unit, e ending) {
	if e.conclusion != tgr.Failure {
		return
	}
	if u.sc.failed = true; u.sc.cause == nil {
		u.sc.cause = &fault{blame: e.blame, message: e.reason, logged: true}
	}
	if u.top() {
		r.status = tgr.Failure
		if !u.controls() { // those name the step that they have waited for
			e.reason = fmt.Sprintf("step '%s' failed: %s", u.rec.Name, e.reason)
		}
		r.blame(e.blame, e.reason)
	}
}

// admit evaluates the step's env and condition, in this order, as the condition may use it.
func (r *run) admit(u *unit) (run bool, err error) {
	u.env, u.outputs, u.failures, u.dir = nil, vars{}, nil, r.dirFor()
	if u.env, err = r.evalPairs("env", u.src.Env, u.sc, u, u.src.Pos); err != nil {
		return false, err
	}
	run, err = r.condition(u.src.If, u.sc, u, r.stateOf(u.sc), u.src.Pos, "if")
	if err != nil || !run {
		return run, err
	}
	// Asked now, because the running step changes what the condition sees.
	u.survives, err = r.condition(u.src.If, u.sc, u, r.stateIf(u.sc, true), u.src.Pos, "if")
	return true, err
}

// attempt does what the step is for, within its time.
func (r *run) attempt(base context.Context, u *unit) error {
	if u.limit = base; base.Err() != nil {
		return interrupted(base)
	}
	if u.top() && u.src.Name != "" {
		name, err := r.text(u.src.Name, u.sc, u, u.src.Pos, "name")
		switch {
		case errors.As(err, new(*fault)): // a name is no reason to fail: it stays as it is written
			r.warn(u.rec, "Encountered an error when evaluating display name "+excerpt(u.src.Name)+". "+err.Error())
		case err != nil:
			return err
		default:
			u.rename(name)
		}
	}
	timeout, err := r.number(u.src.TimeoutMinutes, 0, u.sc, u, u.src.Pos, "timeout-minutes")
	if err != nil {
		return err
	}
	limit, done := r.clock.limit(base, timeout)
	defer done()
	u.limit = limit
	if u.src.Uses == "" { // an empty script is one, too
		err = r.script(u)
	} else {
		err = r.uses(u)
	}
	err = u.failing(err)
	if errors.Is(err, errStepTimeout) && context.Cause(base) == nil {
		err = userError("The action '%s' has timed out after %s.", u.rec.Name, minutesText(timeout))
	}
	return err
}

// rename shows a step of the job under the name that it has when it runs.
func (u *unit) rename(name string) {
	r := u.run
	if name = r.show(name, 255); u.top() && name != u.rec.Name {
		u.rec.Name = name
		r.config.Sink.Steps(r.snapshot())
	}
}

// verdict turns what attempt returned into an outcome, and logs why.
func (r *run) verdict(u *unit, err error) (outcome tgr.Conclusion, reason string, ours error) {
	var f *fault
	switch {
	case err == nil:
		return tgr.Success, "", nil
	case errors.Is(err, errCancelled) && u.stoppedBy() != nil:
		if u.top() {
			r.log(u.rec, "The step was "+u.stoppedBy().Error()+".")
		}
		return tgr.Cancelled, u.stoppedBy().Error(), nil
	case errors.Is(err, errCancelled):
		if u.top() {
			if errors.Is(r.clock.cause(), ErrTimeout) {
				r.error(u.rec, r.clock.reason(r.config.Runner.Name))
			}
			r.error(u.rec, "The operation was canceled.")
		}
		return tgr.Cancelled, r.clock.reason(r.config.Runner.Name), nil
	case errors.Is(err, errStepTimeout): // of a step around this one, which says so
		return tgr.Failure, err.Error(), nil
	case errors.As(err, &f):
		if !f.logged {
			r.error(u.rec, f.message)
		}
		return tgr.Failure, f.message, nil
	}
	r.log(u.rec, "##[error]"+tgr.MessageOf(err))
	return "", "", err
}

// stoppedBy is the step that has cancelled this one, or the one around it, as an error; nil if none has.
func (u *unit) stoppedBy() error {
	if s := (stopped{}); u.limit != nil && errors.As(context.Cause(u.limit), &s) {
		return s
	}
	return nil
}

func blameOfStep(err error) tgr.Blame {
	if b := blameOf(err); b != tgr.BlameOurs {
		return b
	}
	return tgr.BlameUser
}

// conclude writes a step's end to its scope's steps context, and shows it.
func (r *run) conclude(u *unit, e ending) {
	if e.outcome == tgr.Cancelled {
		u.sc.cancelled = true
	}
	u.sc.show(u, e)
	if u.top() {
		r.end(u.rec, e)
	}
}

// show adds a step that has ended to the steps context.
func (sc *scope) show(u *unit, e ending) {
	id := visibleID(u.src.ID)
	if id == "" {
		return
	}
	outputs := expr.NewObject()
	for _, p := range u.outputs.list {
		outputs.Set(p.Name, expr.Str(p.Value))
	}
	sc.steps.Set(id, expr.Obj(expr.NewObject().
		Set("outputs", expr.Obj(outputs)).
		Set("outcome", expr.Str(string(e.outcome))).
		Set("conclusion", expr.Str(string(e.conclusion)))))
}

// flag evaluates a boolean; false where nothing is written.
func (r *run) flag(src string, u *unit, what string) (bool, error) {
	if strings.TrimSpace(src) == "" {
		return false, nil
	}
	v, err := r.eval(src, u.sc, u, u.src.Pos, what)
	if err != nil {
		return false, err
	}
	switch strings.ToLower(v.Text()) {
	case "true":
		return true, nil
	case "false", "":
		return false, nil
	}
	return false, workflowError(r.file(u.sc), u.src.Pos, "%s: '%s' is neither true nor false", what, excerpt(v.Text()))
}

// top reports whether the step is one of the job's own.
func (u *unit) top() bool { return u.sc.parent == nil }

// visibleID is the step's id where the workflow gave it one: generated ids begin with two underscores.
func visibleID(id string) string {
	if strings.HasPrefix(id, "__") {
		return ""
	}
	return id
}

// actionName is github.action: the step's id, or what GitHub makes of it.
func (u *unit) actionName() string {
	if u.top() {
		return u.src.ID
	}
	return u.sc.caller + "__" + strings.TrimPrefix(u.src.ID, "__")
}

// plainName is the step's name before it has been evaluated.
func (u *unit) plainName() string {
	switch {
	case u.src.Name != "":
		return u.src.Name
	case u.src.Uses != "":
		return "Run " + u.src.Uses
	default:
		return "Run " + firstLine(u.src.Run)
	}
}

// early is the name of a step of the job before the job begins: evaluated if it refers to nothing that changes then, so that
// a step that is skipped has it, too.
func (r *run) early(u *unit) string {
	name := u.plainName()
	if u.src.Name == "" && u.src.Uses != "" || !strings.Contains(name, "${{") {
		return name
	}
	t, err := expr.ParseTemplate(name)
	if err != nil || len(t.Check(&expr.Scope{Contexts: []string{"github", "needs", "strategy", "matrix", "inputs", "vars"}})) > 0 {
		return name
	}
	text, err := r.text(name, u.sc, u, u.src.Pos, "name")
	if err != nil {
		return name
	}
	return r.show(text, 255)
}

// firstLine is the first line of a script that is not blank.
func firstLine(script string) string {
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line != "" {
			return line
		}
	}
	return ""
}
