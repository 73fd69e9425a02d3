package runner

import (
	"context"
	"errors"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// preOf returns the pre step of a step, or nil: of a remote JavaScript action that has one, or of a remote composite
// action that uses one.
func (r *run) preOf(u *unit) *hook {
	if hasPre(u) {
		return &hook{}
	}
	return nil
}

func hasPre(u *unit) bool {
	if u.action == nil {
		return false
	}
	switch runs := u.action.meta.Runs; {
	case runs.Pre != "" && strings.HasPrefix(runs.Using, "node"), runs.PreEntrypoint != "" && runs.Using == "docker":
		return true
	}
	for _, in := range u.inner {
		if hasPre(in) {
			return true
		}
	}
	return false
}

// register notes that a step's action has something to run after the job. It has, as soon as its pre or main part is
// about to run; the last to be noted runs first.
func (sc *scope) register(u *unit) {
	wanted := u.action.meta.Runs.Post != "" || u.action.meta.Runs.PostEntrypoint != ""
	if u.inner != nil {
		wanted = len(u.innerIn.posts) > 0
	}
	if sc.of != nil {
		sc = sc.of
	}
	if wanted && !u.posted {
		u.posted = true
		sc.posts = append(sc.posts, u)
	}
}

// preStep runs a pre step, which is shown on its own, before the job's first step.
func (r *run) preStep(u *unit) error {
	return r.hookStep(u, u.pre.rec, r.pre)
}

// postStep runs a post step, which is shown on its own, after the job's last step.
func (r *run) postStep(u *unit) error {
	return r.hookStep(u, r.add(tgr.Step{ID: visibleID(u.src.ID), Name: "Post " + u.rec.Name}), r.post)
}

// hookStep runs a pre or post step. One that had nothing to do is shown as skipped.
func (r *run) hookStep(u *unit, rec *record, do func(*unit) (bool, error)) error {
	main := u.rec
	u.rec = rec
	defer func() { u.rec = main }()
	r.current = rec
	u.limit = r.clock.hard
	r.begin(rec)
	ran, err := r.hook(u, do)
	e, ours := r.judge(u, err)
	if ours != nil {
		return ours
	}
	if err == nil && !ran {
		e = ended(tgr.Skipped, "")
	}
	if code := 0; err == nil && rec.ExitCode != nil { // the failures of the parts were forgiven
		rec.ExitCode = &code
	}
	if e.conclusion == tgr.Failure {
		r.status = tgr.Failure
		r.blame(e.blame, "step '"+rec.Name+"' failed: "+e.reason)
	}
	r.end(rec, e)
	return nil
}

// hook runs the pre or post part of a step with the env of the step, which is evaluated anew: what it refers to has changed
// since the main part, or is not there yet. The step's time is that of each of its parts.
func (r *run) hook(u *unit, do func(*unit) (bool, error)) (ran bool, err error) {
	u.env, u.failures = nil, nil
	if u.env, err = r.evalPairs("env", u.src.Env, u.sc, u, u.src.Pos); err != nil {
		return false, err
	}
	if !u.top() {
		return do(u)
	}
	timeout, err := r.number(u.src.TimeoutMinutes, 0, u.sc, u, u.src.Pos, "timeout-minutes")
	if isOurs(err) { // that it is no number is for the main part to say
		return false, err
	}
	limit, done := r.clock.limit(u.limit, timeout)
	defer done()
	u.limit = limit
	ran, err = do(u)
	if errors.Is(context.Cause(limit), errStepTimeout) && !isOurs(err) {
		err = userError("The action '%s' has timed out after %s.", u.rec.Name, minutesText(timeout))
	}
	return ran, err
}

// innerHook is hook for a step of a composite action, whose failure may be forgiven.
func (r *run) innerHook(u *unit, do func(*unit) (bool, error)) (ran bool, err error) {
	ran, err = r.hook(u, do)
	e, ours := r.judge(u, err)
	switch f := (*fault)(nil); {
	case ours != nil:
		return ran, ours
	case e.conclusion == tgr.Success:
		return ran, nil
	case errors.As(err, &f):
		f.logged = true
	}
	return ran, err
}

// hookCondition evaluates a pre-if or post-if, which look at the job even within a composite action.
func (r *run) hookCondition(u *unit, src, what string) (bool, error) {
	if src == "" {
		src = "always()"
	}
	ok, err := r.condition(src, u.sc, u, r.stateOf(r.top), workflow.Pos{}, u.action.file()+": "+what)
	if err != nil || !ok {
		return false, err
	}
	u.survives, err = r.condition(src, u.sc, u, r.stateIf(r.top, true), workflow.Pos{}, u.action.file()+": "+what)
	return err == nil, err
}

// pre runs the pre part of an action, and reports whether anything ran.
func (r *run) pre(u *unit) (bool, error) {
	runs := u.action.meta.Runs
	if u.inner != nil {
		if _, err := r.enter(u); err != nil {
			return false, err
		}
		ran := false
		for _, in := range u.inner {
			if !hasPre(in) {
				continue
			}
			in.limit = u.limit
			did, err := r.innerHook(in, r.pre)
			if ran = ran || did; err != nil {
				u.sc.register(u)
				return ran, err
			}
		}
		u.sc.register(u)
		return ran, nil
	}
	ok, err := r.hookCondition(u, runs.PreIf, "runs.pre-if")
	if err != nil || !ok {
		return false, err
	}
	inputs, err := r.inputs(u)
	if err != nil {
		return false, err
	}
	u.sc.register(u)
	r.usesHeader(u, shownInputs(inputs))
	if runs.Using == "docker" {
		return true, u.failing(r.dockerProcess(u, stagePre, inputs))
	}
	return true, u.failing(r.nodeProcess(u, runs.Pre, inputs))
}

// post runs the post part of an action, and reports whether anything ran. Of a composite action, these are the post
// parts of the actions that it used, the last one first; one that fails does not keep the others from running.
func (r *run) post(u *unit) (bool, error) {
	if u.inner != nil {
		if _, err := r.enter(u); err != nil {
			return false, err
		}
		ran, failed := false, error(nil)
		for i := len(u.innerIn.posts) - 1; i >= 0; i-- {
			in := u.innerIn.posts[i]
			in.rec, in.limit = u.rec, u.limit
			did, err := r.innerHook(in, r.post)
			ran = ran || did
			if isOurs(err) {
				return ran, err
			}
			if failed == nil {
				failed = err
			}
		}
		return ran, failed
	}
	ok, err := r.hookCondition(u, u.action.meta.Runs.PostIf, "runs.post-if")
	if err != nil || !ok {
		return false, err
	}
	inputs, err := r.inputs(u)
	if err != nil {
		return false, err
	}
	r.log(u.rec, "Post job cleanup.")
	if u.action.meta.Runs.Using == "docker" {
		return true, u.failing(r.dockerProcess(u, stagePost, inputs))
	}
	return true, u.failing(r.nodeProcess(u, u.action.meta.Runs.Post, inputs))
}
