package dispatch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// A job that calls a reusable workflow has a row of its own (tgr.CallJob), which no worker takes, and one row for each
// job of the called workflow. The Key of those is a path: "deploy/build" is the job build of the workflow that the job
// deploy calls, and "deploy[1]/build" that of the second combination of its matrix.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/reusing-workflow-configurations

// settled is what a queued job keeps of the moment when it was queued, as Job.Instance: its combination of the
// matrix, the jobs that it needed, and how its workflow was called.
type settled struct {
	workflow.Instance
	Needs map[string]workflow.Need `json:"needs,omitempty"`
	Calls []call                   `json:"calls,omitempty"`
}

// call is one call on the way to a job of a called workflow. What it passes on is evaluated again whenever it is
// wanted: secrets are not for the database.
type call struct {
	Job      string                   `json:"job"` // its key in its own workflow
	Instance workflow.Instance        `json:"instance"`
	Needs    map[string]workflow.Need `json:"needs,omitempty"`
}

// enter is the frame of the workflow that a job calls, without its place among the rows.
func (f *frame) enter(c call) (*frame, error) {
	j := f.plan.Job(c.Job)
	if j == nil || j.Call == nil {
		return nil, tgr.Errorf("job.call", tgr.Internal, "%s has no job %q that calls a workflow", f.plan.File, c.Job)
	}
	scope := *f.scope
	scope.Needs = c.Needs
	inputs, secrets, err := j.EvalCall(f.plan, &scope, &c.Instance)
	if err != nil {
		return nil, err
	}
	if token := lookupToken(f.scope.Secrets); token != "" { // whatever is passed: it is the job's own
		if secrets == nil {
			secrets = map[string]string{}
		}
		secrets[tokenSecret] = token
	}
	inner := *f.scope
	inner.Inputs, inner.Secrets = inputs, secrets
	return &frame{plan: j.Call.Plan, scope: &inner, calls: append(f.calls[:len(f.calls):len(f.calls)], c)}, nil
}

// identity is job.workflow_ref and job.workflow_sha of the jobs of a called workflow.
func identity(c *workflow.Call, ev tgr.Event) (ref, sha string) {
	if c.Repo == "" {
		return ev.Repo.FullName + "/" + c.File + "@" + ev.Ref, ev.SHA
	}
	file, _, _ := strings.Cut(c.File, "@")
	return file + "@" + c.Ref, c.SHA
}

// warnings are what a job should know of the calls on the way to it.
func (d *Dispatcher) warnings(l *Lease) []string {
	p, err := d.plans.get(l.Run)
	var in settled
	if err != nil || json.Unmarshal(l.Job.Instance, &in) != nil {
		return nil // whoever starts the job says so
	}
	var out []string
	for _, c := range in.Calls {
		j := p.Job(c.Job)
		if j == nil || j.Call == nil {
			break
		}
		if w, ok := j.Uninherited(p); ok {
			out = append(out, "##[warning]"+w.Error())
		}
		p = j.Call.Plan
	}
	return out
}

const tokenSecret = "GITHUB_TOKEN"

func lookupToken(secrets map[string]string) string {
	for name, v := range secrets {
		if strings.EqualFold(name, tokenSecret) {
			return v
		}
	}
	return ""
}

// callOf is the call that an expanded row of a calling job is.
func callOf(row tgr.Job) (call, error) {
	var in settled
	if err := json.Unmarshal(row.Instance, &in); err != nil {
		return call{}, tgr.Errorf("job.call", tgr.Internal, "instance of job %d: %w", row.ID, err)
	}
	return call{Job: in.Key, Instance: in.Instance, Needs: in.Needs}, nil
}

// inside is the frame of what the row calls.
func (g *graph) inside(f *frame, row tgr.Job) (*frame, error) {
	c, err := callOf(row)
	if err != nil {
		return nil, err
	}
	inner, err := f.enter(c)
	if err != nil {
		return nil, err
	}
	inner.path, inner.name = callPath(row), row.Name+" / "
	return inner, nil
}

// callPath is what the keys of the jobs that a job calls begin with.
func callPath(row tgr.Job) string {
	if row.Total > 1 {
		return fmt.Sprintf("%s[%d]/", row.Key, row.Index)
	}
	return row.Key + "/"
}

// callGroup gives a call the concurrency group of the workflow that it calls, if that has one: it counts as the job's.
func callGroup(f *frame, j *workflow.Job, scope *workflow.Scope, in *workflow.Instance) error {
	if j.Call.Plan.Concurrency == nil {
		return nil
	}
	s := *f
	s.scope = scope
	inner, err := s.enter(call{Job: j.Key, Instance: *in, Needs: scope.Needs})
	if err != nil {
		return err
	}
	group, cancelOther, queueMax, err := inner.plan.EvalConcurrency(inner.scope)
	switch {
	case err != nil:
		return err
	case group == "" || strings.EqualFold(group, in.ConcurrencyKey):
		return nil
	case in.ConcurrencyKey != "":
		return fmt.Errorf("%s:%d:%d: job %s is in the concurrency group %q, and the workflow %s that it calls is in %q: a job can be in one",
			f.plan.File, j.Pos.Line, j.Pos.Column, j.Key, in.ConcurrencyKey, j.Call.File, group)
	}
	in.ConcurrencyKey, in.CancelOther, in.QueueMax = group, cancelOther, queueMax
	return nil
}

// begin starts a call whose turn it is: the jobs of the called workflow become rows.
func (g *graph) begin(f *frame, j *workflow.Job, row tgr.Job) {
	running := 0 // of this job, with those that begin now
	for _, r := range g.rows[row.Key] {
		if _, begins := g.change.Begin[r.ID]; begins || r.Status == tgr.InProgress {
			running++
		}
	}
	if row.MaxParallel > 0 && running >= row.MaxParallel {
		return
	}
	inner, err := g.inside(f, row)
	if err != nil {
		g.change.End[row.ID] = workflowFault(err)
		return
	}
	if g.has(inner.path) { // a re-run has brought them along
		g.change.Begin[row.ID] = []tgr.Job{}
		return
	}
	if g.room -= len(inner.plan.Jobs); g.room < 0 {
		g.change.End[row.ID] = workflowFault(fmt.Errorf("the run has more than %d jobs", maxRows))
		return
	}
	rows := pendingRows(inner)
	for i := range rows {
		rows[i].Run, rows[i].Attempt = row.Run, row.Attempt
	}
	g.change.Begin[row.ID] = rows
}

// has reports whether there are jobs below a path.
func (g *graph) has(path string) bool {
	for key := range g.rows {
		if strings.HasPrefix(key, path) {
			return true
		}
	}
	return false
}

// pendingRows are the jobs of a frame before anything is known of them.
func pendingRows(f *frame) []tgr.Job {
	rows := make([]tgr.Job, 0, len(f.plan.Jobs))
	for _, j := range f.plan.Jobs {
		row := tgr.Job{Kind: tgr.WorkJob, Key: f.path + j.Key, Name: f.name + or(j.Name, j.Key), Status: tgr.Pending}
		for _, need := range j.Needs {
			row.Needs = append(row.Needs, f.path+need)
		}
		if j.Uses != "" {
			row.Kind, row.Uses = tgr.CallJob, j.Uses
		}
		rows = append(rows, row)
	}
	return rows
}

// Order is where the job of a Key stands in the workflows of a plan, for sorting: its place in the file, after the
// place and the combination of each job that calls its workflow.
func Order(p *workflow.Plan, key string) []int {
	var out []int
	for {
		name, rest, below := strings.Cut(key, "/")
		name, index, _ := strings.Cut(name, "[")
		at := slices.IndexFunc(p.Jobs, func(j workflow.Job) bool { return j.Key == name })
		out = append(out, at)
		if !below || at < 0 || p.Jobs[at].Call == nil {
			return out
		}
		n, _ := strconv.Atoi(strings.TrimSuffix(index, "]")) // none is the first
		out = append(out, n)
		p, key = p.Jobs[at].Call.Plan, rest
	}
}

// called lets the jobs of a called workflow go on, and ends the call when they have.
func (g *graph) called(f *frame, j *workflow.Job, row tgr.Job, stop string) {
	inner, err := g.inside(f, row)
	if err != nil {
		g.change.End[row.ID] = workflowFault(err)
		return
	}
	inner.stop = stop
	g.settle(inner)
	jobs := map[string]workflow.Need{}
	var all []tgr.Job
	for _, callee := range inner.plan.Jobs {
		path := inner.path + callee.Key
		if !g.done(path) {
			return
		}
		jobs[callee.Key] = g.need(path)
		all = append(all, g.rows[path]...)
	}
	r := callResult(all)
	outputs, err := j.Call.EvalOutputs(inner.scope, jobs)
	if err != nil && r.Conclusion == tgr.Success {
		r = workflowFault(err)
	}
	r.Outputs = maps.Clone(outputs)
	g.change.End[row.ID] = r
}

// callResult is how a call ended whose jobs ended as rows say.
func callResult(rows []tgr.Job) JobResult {
	r := JobResult{Conclusion: tgr.Conclusion(needOf(rows).Result)}
	for _, row := range rows {
		if row.Conclusion.Failed() && !row.ContinueOnError && (row.Conclusion == tgr.Cancelled) == (r.Conclusion == tgr.Cancelled) {
			r.Blame, r.Reason = row.Blame, fmt.Sprintf("%s: %s", row.Name, strings.ReplaceAll(string(row.Conclusion), "_", " "))
			break
		}
	}
	return r
}
