package dispatch

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// next decides what may happen to the jobs of a run now: which wait no longer, are skipped, cancelled or have failed
// without running. It is a pure function of the run's state, so calling it again changes nothing.
func next(p *workflow.Plan, run tgr.Run, jobs []tgr.Job, s *workflow.Scope, only limits) Change {
	g := graph{run: run, only: only, rows: map[string][]tgr.Job{}, room: maxRows - len(jobs), keeps: maxKept, change: Change{
		Expand: map[tgr.JobID][]tgr.Job{}, Begin: map[tgr.JobID][]tgr.Job{}, Skip: map[tgr.JobID]string{},
		End: map[tgr.JobID]JobResult{}, Cancel: map[tgr.JobID]string{}, Queue: map[tgr.JobID]time.Time{}, Wait: map[tgr.JobID]string{},
	}}
	for _, j := range jobs {
		g.keeps -= len(j.Instance)
		if j.Kind != tgr.PlanJob {
			g.rows[j.Key] = append(g.rows[j.Key], j)
		}
	}
	late := g.late(jobs)
	if run.Hold != "" && late == "" {
		g.held(jobs)
		return g.change
	}
	g.change.CancelRun = late
	g.settle(&frame{plan: p, scope: s, stop: late})
	return g.change
}

// maxRows is how many jobs an attempt of a run may have: matrices over workflows with matrices grow fast.
const maxRows = 5000

// maxKept is how many bytes the jobs of an attempt may keep in their Instance, where each has a copy of the outputs that it
// needs.
const maxKept = 64 << 20

// limits say which instances of a job there are to be, and how long they may wait.
type limits struct {
	keep   func(workflow.Instance) bool // nil: all
	labels Labels                       // nil: any will do
	// environment is what jobs for an environment wait for; nil: nothing.
	environment func(name string) (tgr.Environment, error)
	now         func() time.Time // nil: nothing takes time
}

// refuse is why no machine will ever do what in asks for, or nil. A job that calls a workflow asks for none.
func (l limits) refuse(in *workflow.Instance) error {
	if l.labels == nil || len(wanted(in)) == 0 {
		return nil
	}
	_, err := l.labels.Kind(wanted(in))
	return err
}

// wanted are the labels of the machine that an instance wants. A group of runners is one more of them.
func wanted(in *workflow.Instance) []string {
	if in.RunsOnGroup == "" {
		return in.RunsOn
	}
	return append(slices.Clone(in.RunsOn), in.RunsOnGroup)
}

// graph is one call of next.
type graph struct {
	run    tgr.Run
	only   limits
	rows   map[string][]tgr.Job // by path
	room   int                  // for more rows
	keeps  int                  // bytes that more rows may keep
	change Change
}

// frame is one workflow of a run: the one that was started, or one that a job of another frame calls.
type frame struct {
	plan  *workflow.Plan
	scope *workflow.Scope // what all its jobs see: everything but needs
	path  string          // of the calling job, with a slash; "" for the workflow that was started
	name  string          // of the calling job, as a prefix
	calls []call          // how it was called, from the top
	stop  string          // why none of its jobs may go on; "": they may
}

// held decides on a run that waits for an approval: nothing of it has begun. If it is cancelled, all of it is, what is to
// run always too.
func (g *graph) held(jobs []tgr.Job) {
	for _, j := range jobs {
		if g.run.CancelReason != "" && !j.Status.Done() {
			g.change.Cancel[j.ID] = g.run.CancelReason
		}
	}
}

func (g *graph) settle(f *frame) {
	for i := range f.plan.Jobs {
		g.settleJob(f, &f.plan.Jobs[i])
	}
}

func (g *graph) settleJob(f *frame, j *workflow.Job) {
	rows := g.rows[f.path+j.Key]
	stop := f.stop
	for _, row := range rows {
		if stop == "" && row.Origin == 0 && row.Status.Done() && row.Conclusion.Failed() && row.Conclusion != tgr.Cancelled && !row.ContinueOnError && failsFast(row) {
			stop = fmt.Sprintf("fail-fast: %s failed", row.Name)
		}
	}
	for _, row := range rows {
		switch {
		case row.Status.Done():
		case row.Kind == tgr.CallJob && row.Status == tgr.InProgress:
			g.called(f, j, row, stop)
		case stop != "":
			g.change.Cancel[row.ID] = stop
		case row.Status == tgr.Pending && len(row.Instance) == 0:
			g.pending(f, j, row)
		case row.Status == tgr.Pending && g.refused(row) != nil:
			at := cmp.Or(j.At["runs-on"], j.Pos)
			g.change.End[row.ID] = workflowFault(fmt.Errorf("%s:%d:%d: %s", f.plan.File, at.Line, at.Column, tgr.MessageOf(g.refused(row))))
		case row.Status == tgr.Pending && g.run.CancelReason != "": // it waits for its group, or at a gate
			g.change.Cancel[row.ID] = g.run.CancelReason
		case row.Gated:
			g.gate(row)
		case g.run.CancelReason != "" && !g.outlivesCancel(f, j):
			g.change.Cancel[row.ID] = g.run.CancelReason
		case row.Kind == tgr.CallJob && row.Status == tgr.Queued:
			g.begin(f, j, row)
		case row.Status == tgr.Queued && g.waited(row) > maxQueue:
			g.change.End[row.ID] = JobResult{Conclusion: tgr.Cancelled, Blame: tgr.BlameOurs,
				Reason: fmt.Sprintf("waited %s for a machine, and none became free", span(maxQueue))}
		}
	}
}

// pending decides on a job that has waited for its needs.
func (g *graph) pending(f *frame, j *workflow.Job, row tgr.Job) {
	if slices.ContainsFunc(j.Needs, func(need string) bool { return !g.done(f.path + need) }) {
		return
	}
	scope := g.scopeOf(f, j)
	run, err := j.Decide(f.plan, scope)
	switch {
	case err != nil:
		g.change.End[row.ID] = workflowFault(err)
		return
	case !run && g.run.CancelReason != "":
		g.change.Cancel[row.ID] = g.run.CancelReason
		return
	case !run:
		g.change.Skip[row.ID] = g.whySkipped(f, j)
		return
	case j.Uses != "" && j.Call == nil:
		g.change.End[row.ID] = workflowFault(fmt.Errorf(
			"%s:%d:%d: job %s calls the workflow %s, which was not available when the run was planned", f.plan.File, j.Pos.Line, j.Pos.Column, j.Key, j.Uses))
		return
	}
	instances, err := j.Expand(f.plan, scope)
	if err != nil {
		g.change.End[row.ID] = workflowFault(err)
		return
	}
	if keep := g.only.keep; keep != nil {
		instances = slices.DeleteFunc(instances, func(in workflow.Instance) bool { return !keep(in) })
	}
	if len(instances) == 0 {
		g.change.Skip[row.ID] = "its matrix has no combination that is wanted"
		return
	}
	if g.room -= len(instances); g.room < 0 {
		g.change.End[row.ID] = workflowFault(fmt.Errorf("the run has more than %d jobs", maxRows))
		return
	}
	rows := make([]tgr.Job, 0, len(instances))
	for i := range instances {
		in := &instances[i]
		if j.Call != nil {
			if err := callGroup(f, j, scope, in); err != nil {
				g.change.End[row.ID] = workflowFault(err)
				return
			}
		}
		rows = append(rows, g.queued(f, j, row, settled{Instance: *in, Needs: scope.Needs, Calls: f.calls}))
		if g.keeps -= len(rows[i].Instance); g.keeps < 0 {
			g.change.End[row.ID] = workflowFault(fmt.Errorf("%s:%d:%d: the run's jobs would keep more than %d bytes of the outputs of jobs that they need, with each instance of %s",
				f.plan.File, j.Pos.Line, j.Pos.Column, maxKept, j.Key))
			return
		}
	}
	g.change.Expand[row.ID] = rows
}

// queued is the job that one instance becomes.
func (g *graph) queued(f *frame, j *workflow.Job, row tgr.Job, in settled) tgr.Job {
	data, err := json.Marshal(in)
	if err != nil {
		panic(err) // it is plain data: a bug, if it cannot be written
	}
	status, group := tgr.Queued, tgr.Group{Name: in.ConcurrencyKey, CancelOther: in.CancelOther, QueueMax: in.QueueMax}
	gated, reason := in.Environment != "", ""
	if g.only.refuse(&in.Instance) != nil {
		status, gated = tgr.Pending, true // it fails in the next round, alone among its matrix and before it is in its group
	} else if gated {
		reason = "waits for the environment " + in.Environment // until gate says more, in the next round
	}
	return tgr.Job{
		Run: row.Run, Attempt: row.Attempt, Kind: row.Kind, Key: row.Key, Name: f.name + in.Name, Needs: row.Needs, Uses: row.Uses,
		Index: in.Index, Total: in.Total, MaxParallel: in.MaxParallel, Instance: data, Labels: wanted(&in.Instance),
		ContinueOnError: in.ContinueOnError, Status: status, Group: group,
		Environment: in.Environment, Gated: gated, Reason: reason,
	}
}

// refused is why an instance that is pending can never run, or nil.
func (g *graph) refused(row tgr.Job) error {
	var in settled
	if err := json.Unmarshal(row.Instance, &in); err != nil {
		return err
	}
	return g.only.refuse(&in.Instance)
}

// scopeOf is the scope of one job: its direct needs, and all of them for success() and failure().
func (g *graph) scopeOf(f *frame, j *workflow.Job) *workflow.Scope {
	s := *f.scope
	s.Needs, s.Ancestors = map[string]workflow.Need{}, map[string]workflow.Need{}
	s.Cancelled = g.run.CancelReason != ""
	for _, need := range j.Needs {
		s.Needs[need] = g.need(f.path + need)
	}
	var climb func(keys []string)
	climb = func(keys []string) {
		for _, key := range keys {
			if _, seen := s.Ancestors[key]; seen {
				continue
			}
			s.Ancestors[key] = g.need(f.path + key)
			if up := f.plan.Job(key); up != nil {
				climb(up.Needs)
			}
		}
	}
	climb(j.Needs)
	return &s
}

// done reports whether every row of a job is complete. Rows that next itself completes count the next time.
func (g *graph) done(path string) bool {
	rows := g.rows[path]
	return len(rows) > 0 && !slices.ContainsFunc(rows, func(r tgr.Job) bool { return !r.Status.Done() })
}

// need is a finished job as the needs context shows it. Of a matrix the worst result counts, and of two instances
// that set the same output the one that ended last.
func (g *graph) need(path string) workflow.Need { return needOf(g.rows[path]) }

func needOf(rows []tgr.Job) workflow.Need {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b tgr.Job) int { return a.Finished.Compare(b.Finished) })
	n := workflow.Need{Result: string(tgr.Success), Outputs: map[string]string{}}
	skipped := 0
	for _, r := range rows {
		for k, v := range r.Outputs {
			if v != "" || n.Outputs[k] == "" {
				n.Outputs[k] = v
			}
		}
		switch {
		case r.Conclusion == tgr.Skipped:
			skipped++
		case !r.Conclusion.Failed() || r.ContinueOnError:
		case r.Conclusion == tgr.Cancelled:
			if n.Result != string(tgr.Failure) {
				n.Result = string(tgr.Cancelled)
			}
		default:
			n.Result = string(tgr.Failure)
		}
	}
	if skipped == len(rows) {
		n.Result = string(tgr.Skipped)
	}
	return n
}

// outlivesCancel reports whether a job that already runs, or may, goes on when the run is cancelled: GitHub evaluates
// its condition again and goes on if it still holds, as always() does.
func (g *graph) outlivesCancel(f *frame, j *workflow.Job) bool {
	run, err := j.Decide(f.plan, g.scopeOf(f, j))
	return err == nil && run
}

// whySkipped says which part of a job's condition does not hold: what is written, or the success() before it.
func (g *graph) whySkipped(f *frame, j *workflow.Job) string {
	cond, implicit := strings.CutPrefix(j.If, "success() && (")
	if implicit {
		cond = strings.TrimSuffix(cond, ")")
	}
	for _, key := range j.Needs {
		if r := g.need(f.path + key).Result; r != string(tgr.Success) {
			if implicit {
				cond = "success()"
			}
			return fmt.Sprintf("if: %s is false: %s ended as %s", cond, key, r)
		}
	}
	return fmt.Sprintf("if: %s is false", cond)
}

func failsFast(row tgr.Job) bool {
	var in workflow.Instance
	return json.Unmarshal(row.Instance, &in) == nil && in.FailFast && in.Total > 1
}

func workflowFault(err error) JobResult {
	return JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameWorkflow, Reason: err.Error()}
}
