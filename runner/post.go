package runner

import (
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
	u.rec, u.failures = rec, nil
	defer func() { u.rec = main }()
	r.current = rec
	limit, done := r.clock.limit(r.clock.hard, 0)
	defer done()
	u.limit = limit
	r.begin(rec)
	ran, err := do(u)
	if err == nil && len(u.failures) > 0 {
		err = &fault{blame: tgr.BlameUser, message: u.failures[0], logged: true}
	}
	outcome, reason, ours := r.verdict(u, err)
	if ours != nil {
		return ours
	}
	if err == nil && !ran {
		outcome = tgr.Skipped
	}
	if outcome == tgr.Failure {
		r.status = tgr.Failure
		r.blame(blameOfStep(err), "step '"+rec.Name+"' failed: "+reason)
	}
	r.end(rec, ended(outcome, reason))
	return nil
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

// hookEnv evaluates the step's env anew: what it refers to has changed since the main part, or is not there yet.
func (r *run) hookEnv(u *unit) (err error) {
	u.env = nil
	u.env, err = r.evalPairs("env", u.src.Env, u.sc, u, u.src.Pos)
	return err
}

// pre runs the pre part of an action, and reports whether anything ran.
func (r *run) pre(u *unit) (bool, error) {
	runs := u.action.meta.Runs
	if err := r.hookEnv(u); err != nil {
		return false, err
	}
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
			did, err := r.pre(in)
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
		return true, r.dockerProcess(u, stagePre, inputs)
	}
	return true, r.nodeProcess(u, runs.Pre, inputs)
}

// post runs the post part of an action, and reports whether anything ran. Of a composite action, these are the post
// parts of the actions that it used, the last one first; one that fails does not keep the others from running.
func (r *run) post(u *unit) (bool, error) {
	if err := r.hookEnv(u); err != nil {
		return false, err
	}
	if u.inner != nil {
		if _, err := r.enter(u); err != nil {
			return false, err
		}
		ran, failed := false, error(nil)
		for i := len(u.innerIn.posts) - 1; i >= 0; i-- {
			in := u.innerIn.posts[i]
			in.rec, in.limit = u.rec, u.limit
			did, err := r.post(in)
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
		return true, r.dockerProcess(u, stagePost, inputs)
	}
	return true, r.nodeProcess(u, u.action.meta.Runs.Post, inputs)
}
