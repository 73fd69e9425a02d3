package runner

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// statics are the contexts that stay the same for the whole job.
type statics struct {
	github     map[string]any
	githubKeys []string // in order
	event      func() (expr.Value, error)
	vars       expr.Value
	secrets    expr.Value
	strategy   expr.Value
	matrix     expr.Value
	needs      expr.Value
	inputs     expr.Value
	runner     expr.Value
}

// scope is where steps see each other: the job, or one use of a composite action.
type scope struct {
	parent    *scope
	of        *scope       // of a step in the background: the scope that it was started in
	world     *world       // of the scopes without a parent
	action    *action      // nil at the top
	inputs    expr.Value   // of the action
	steps     *expr.Object // the steps context
	env       []pair       // what the step that uses the action adds to the environment
	caller    string       // github.action of the step that uses the action
	failed    bool         // a step of the action has failed
	cause     *fault       // why the first of them failed
	cancelled bool         // a step of the action was cancelled
	survives  bool         // the step that uses the action runs on when the job is cancelled
	depth     int          // of actions in actions
	posts     []*unit      // what is to be run after the job, in the order of the main steps
}

// here is the world that the scope's steps live in and change.
func (sc *scope) here() *world {
	for sc.parent != nil {
		sc = sc.parent
	}
	return sc.world
}

// fill evaluates what the job brought along.
func (s *statics) fill(r *run) error {
	j := r.job
	s.github = githubContext(r)
	s.githubKeys = slices.Sorted(maps.Keys(s.github))
	event, raw := expr.Null(), j.Event
	loaded := len(raw) == 0
	s.event = func() (expr.Value, error) {
		if loaded {
			return event, nil
		}
		v, err := expr.FromJSON(raw)
		if err != nil {
			return v, tgr.Errorf("job.contexts", tgr.Internal, "the event's payload is not JSON: %w", err)
		}
		event, loaded = v, true
		return event, nil
	}
	s.vars, s.inputs = expr.FromAny(j.Vars), expr.FromAny(j.Inputs)
	if j.Inputs == nil {
		s.inputs = expr.Obj(expr.NewObject())
	}
	secrets := map[string]string{}
	maps.Copy(secrets, j.Secrets)
	if j.Token != "" {
		secrets["GITHUB_TOKEN"] = j.Token
	}
	s.secrets = expr.FromAny(secrets)
	i := j.Instance
	s.strategy = expr.Obj(expr.NewObject().
		Set("fail-fast", expr.Bool(i.FailFast)).
		Set("job-index", expr.Num(float64(i.Index))).
		Set("job-total", expr.Num(float64(max(i.Total, 1)))).
		Set("max-parallel", expr.Num(float64(max(i.MaxParallel, 1)))))
	if len(i.Matrix) > 0 {
		m, err := expr.FromJSON(i.Matrix)
		if err != nil {
			return tgr.Errorf("job.contexts", tgr.Internal, "the matrix is not JSON: %w", err)
		}
		s.matrix = m
	}
	needs := expr.NewObject()
	for _, name := range j.Job.Needs { // in the file's order
		if n, ok := j.Needs[name]; ok {
			needs.Set(name, expr.Obj(expr.NewObject().Set("result", expr.Str(n.Result)).Set("outputs", expr.FromAny(n.Outputs))))
		}
	}
	s.needs = expr.Obj(needs)
	s.fillRunner(r)
	return nil
}

// fillRunner makes the runner context, whose paths are those that steps see.
func (s *statics) fillRunner(r *run) {
	c, see := r.config, r.site.inside
	about := expr.NewObject().
		Set("os", expr.Str(c.Runner.OS)).Set("arch", expr.Str(c.Runner.Arch)).Set("name", expr.Str(c.Runner.Name)).
		Set("environment", expr.Str(c.Runner.Environment)).Set("tool_cache", expr.Str(see(c.Dirs.Tools))).
		Set("temp", expr.Str(see(c.Dirs.Temp))).Set("workspace", expr.Str(see(path.Dir(c.Dirs.Workspace))))
	if r.job.Debug {
		about.Set("debug", expr.Str("1"))
	}
	s.runner = expr.Obj(about)
}

// githubContext adds to the job's github context what is the runner's to say.
func githubContext(r *run) map[string]any {
	g := map[string]any{
		"server_url":  "https://github.com",
		"api_url":     "https://api.github.com",
		"graphql_url": "https://api.github.com/graphql",
	}
	maps.Copy(g, r.job.GitHub)
	delete(g, "event")
	g["token"] = r.job.Token
	g["job"] = r.job.Job.Key
	g["workspace"] = r.config.Dirs.Workspace
	g["event_path"] = eventPath(r.config.Dirs)
	return g
}

// contexts are what the expressions of a step see; u is nil for those of the job.
func (r *run) contexts(sc *scope, u *unit) *expr.Object {
	s := &r.static
	o := expr.NewObject()
	github := expr.NewObject()
	for _, k := range s.githubKeys {
		github.Set(k, expr.FromAny(s.github[k]))
	}
	github.SetLazy("event", s.event)
	for _, p := range r.stepGitHub(sc, u) {
		github.Set(p.Name, expr.Str(p.Value))
	}
	if sc.action != nil {
		status := tgr.Success
		switch {
		case sc.failed:
			status = tgr.Failure
		case sc.cancelled:
			status = tgr.Cancelled
		}
		github.Set("action_status", expr.Str(string(status)))
	}
	o.Set("github", expr.Obj(github))
	o.Set("env", expr.Obj(r.envContext(sc, u)))
	o.Set("vars", s.vars)
	o.Set("job", expr.Obj(r.jobContext()))
	o.Set("steps", expr.Obj(sc.steps))
	o.Set("runner", s.runner)
	o.Set("strategy", s.strategy)
	o.Set("matrix", s.matrix)
	o.Set("needs", s.needs)
	if sc.action == nil {
		o.Set("inputs", s.inputs)
		o.Set("secrets", s.secrets)
	} else { // an action is given secrets as inputs, or not at all
		o.Set("inputs", sc.inputs)
		o.Set("secrets", expr.Null())
	}
	return o
}

// stepGitHub is the part of the github context that depends on the step.
func (r *run) stepGitHub(sc *scope, u *unit) []pair {
	var ps []pair
	if u != nil {
		ps = append(ps, pair{"action", u.actionName()})
		if u.dir != "" {
			dir := r.site.inside(u.dir)
			ps = append(ps,
				pair{"env", dir + "/" + fileEnv}, pair{"path", dir + "/" + filePath}, pair{"output", dir + "/" + fileOutput},
				pair{"state", dir + "/" + fileState}, pair{"step_summary", dir + "/" + fileSummary},
				pair{"artifacts", dir + "/" + fileArts}, pair{"artifacts_list", dir + "/" + fileList})
		}
	}
	a := sc.action
	if u != nil && u.action != nil {
		a = u.action
	}
	if a != nil {
		ps = append(ps, pair{"action_path", r.site.inside(a.dir)}, pair{"action_ref", a.ref}, pair{"action_repository", a.repo})
	}
	return ps
}

// jobStatus is job.status: how the job stands so far.
func (r *run) jobStatus() string {
	if r.clock.cancelled() {
		return string(tgr.Cancelled)
	}
	return string(r.status)
}

// jobContext is the job context.
func (r *run) jobContext() *expr.Object {
	o := expr.NewObject().Set("status", expr.Str(r.jobStatus()))
	r.addContainers(o)
	if id := r.job.CheckRun; id > 0 {
		o.Set("check_run_id", expr.Num(float64(id)))
	}
	ref, sha := r.written()
	if ref != "" {
		o.Set("workflow_ref", expr.Str(ref))
	}
	if sha != "" {
		o.Set("workflow_sha", expr.Str(sha))
	}
	if ref != "" { // owner/name/path@ref
		file, _, _ := strings.Cut(ref, "@")
		if parts := strings.SplitN(file, "/", 3); len(parts) == 3 {
			o.Set("workflow_repository", expr.Str(parts[0]+"/"+parts[1])).Set("workflow_file_path", expr.Str(parts[2]))
		}
	}
	return o
}

// written is the file that the job is written in, owner/name/path@ref, and its commit.
func (r *run) written() (ref, sha string) {
	if r.job.WorkflowRef != "" {
		return r.job.WorkflowRef, r.job.WorkflowSHA
	}
	ref, _ = r.static.github["workflow_ref"].(string)
	sha, _ = r.static.github["workflow_sha"].(string)
	return ref, sha
}

// state is what the status functions answer from.
type state struct {
	failed    bool
	cancelled bool // the job was
	stopped   bool // and with it the steps that the condition is one of
}

// stateOf is the state that the conditions of a scope's steps look at: the action's own in a composite action. One that
// cleans up after a cancelled job is a success as long as its own steps are.
func (r *run) stateOf(sc *scope) state {
	return r.stateIf(sc, r.clock.cancelled())
}

// stateIf is the state where the job was cancelled, or was not.
func (r *run) stateIf(sc *scope, cancelled bool) state {
	if sc.action == nil {
		return state{failed: r.status == tgr.Failure, cancelled: cancelled, stopped: cancelled}
	}
	return state{failed: sc.failed, cancelled: cancelled, stopped: sc.cancelled || cancelled && !sc.survives}
}

// functions are those beyond the language's own.
func (r *run) functions(s state) map[string]expr.Function {
	status := func(b bool) expr.Function {
		return expr.Function{Call: func([]expr.Value) (expr.Value, error) { return expr.Bool(b), nil }}
	}
	return map[string]expr.Function{
		"always":    status(true),
		"cancelled": status(s.cancelled),
		"success":   status(!s.failed && !s.stopped),
		"failure":   status(s.failed && !s.stopped),
		"hashfiles": {Min: 1, Max: 255, Call: func(args []expr.Value) (expr.Value, error) {
			patterns := make([]string, len(args))
			for i, a := range args {
				patterns[i] = a.Text()
			}
			hash, err := r.hashFiles(patterns)
			return expr.Str(hash), err
		}},
	}
}

// eval evaluates a text that may hold ${{ }}; one that is nothing but an expression keeps its type. what names the
// key for the error.
func (r *run) eval(src string, sc *scope, u *unit, pos workflow.Pos, what string) (expr.Value, error) {
	if !strings.Contains(src, "${{") {
		return expr.Str(src), nil
	}
	t, err := expr.ParseTemplate(src)
	if err != nil {
		return expr.Null(), r.exprError(sc, pos, what, err)
	}
	v, err := t.Eval(&expr.Env{Contexts: r.contexts(sc, u), Functions: r.functions(r.stateOf(sc))})
	if err != nil {
		return expr.Null(), r.exprError(sc, pos, what, err)
	}
	return v, nil
}

// text evaluates to a string.
func (r *run) text(src string, sc *scope, u *unit, pos workflow.Pos, what string) (string, error) {
	v, err := r.eval(src, sc, u, pos, what)
	return v.Text(), err
}

// condition evaluates an `if` in a given state.
func (r *run) condition(src string, sc *scope, u *unit, s state, pos workflow.Pos, what string) (bool, error) {
	e, err := expr.ParseCondition(src)
	if err != nil {
		return false, r.exprError(sc, pos, what, err)
	}
	v, err := e.Eval(&expr.Env{Contexts: r.contexts(sc, u), Functions: r.functions(s)})
	if err != nil {
		return false, r.exprError(sc, pos, what, err)
	}
	return v.Truthy(), nil
}

// number evaluates to a finite number; def where nothing is written.
func (r *run) number(src string, def float64, sc *scope, u *unit, pos workflow.Pos, what string) (float64, error) {
	if strings.TrimSpace(src) == "" {
		return def, nil
	}
	v, err := r.eval(src, sc, u, pos, what)
	if err != nil {
		return 0, err
	}
	if v.Kind() == expr.KindNull || v.Text() == "" {
		return def, nil
	}
	n := v.Float()
	if math.IsNaN(n) || math.IsInf(n, 0) || n < 0 {
		return 0, workflowError(r.file(sc), pos, "%s: '%s' is not a number of minutes", what, excerpt(v.Text()))
	}
	return n, nil
}

// exprError puts an expression's error at its place. A fault of ours in a function stays ours.
func (r *run) exprError(sc *scope, pos workflow.Pos, what string, err error) error {
	var f *fault
	var ours *tgr.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, errCancelled):
		return errCancelled
	case errors.As(err, &ours):
		return ours
	}
	return workflowError(r.file(sc), pos, "%s: %v", what, err)
}

// file is the file that a scope's steps are written in.
func (r *run) file(sc *scope) string {
	if sc.action != nil {
		return sc.action.file()
	}
	return r.job.Plan.File
}

// number prints a number as the expression language does: no exponent, no zeros at the end.
func number(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

// minutesText is a duration for the log.
func minutesText(n float64) string { return fmt.Sprintf("%s minutes", number(n)) }
