package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// Change is what Settle's function wants done to the jobs of a run. A job may be named once.
type Change struct {
	Expand map[tgr.JobID]Expansion // a pending job is replaced by its instances
	Skip   map[tgr.JobID]string    // a pending job completes as skipped, with the reason
	Begin  map[tgr.JobID][]tgr.Job // a queued call is in progress: its workflow's jobs, as of PlannedRun
	End    map[tgr.JobID]JobResult // a job that no worker has completes; Reports are not used
	Queue  map[tgr.JobID]time.Time // a pending job has what it waited for: it is queued, or waits for its Group; not claimed before that time
	Wait   map[tgr.JobID]string    // a pending job shows that reason
	Cancel map[tgr.JobID]string    // pending and queued ones complete as cancelled, running ones are marked

	CancelRun string // the run's CancelReason from now on, unless it has one; "": as it is

	Reports []Outgoing // for the outbox
}

// Empty reports whether c changes nothing.
func (c Change) Empty() bool {
	return len(c.Expand)+len(c.Begin)+len(c.Skip)+len(c.End)+len(c.Queue)+len(c.Wait)+len(c.Cancel)+len(c.Reports) == 0 && c.CancelRun == ""
}

// Expansion is what a pending job becomes.
type Expansion struct {
	// Jobs are its instances: Name, Index, Total, Instance, Labels, ContinueOnError, Environment, Gated and Group are
	// used; Key, Needs and the rest come from the pending job. Each is queued, or stays pending, with its Reason: with a
	// Group until it is the one whose turn it is; where it is Gated until Queue; where its Status says so.
	Jobs        []tgr.Job
	MaxParallel int // how many of them may run at once; 0: no limit
}

// Settle moves a run on. It calls fn in a write transaction with the run (with its plan and payload) and the
// work jobs of its current attempt as they are at that moment, applies the change that fn returns, derives the
// run's status with [tgr.Fold] and stores it where it differs. An error of fn is returned and nothing is written.
// A run that is completed, not planned, or waits for its concurrency group is left alone: fn is not called. fn must be quick, must not block and
// must not call the store.
func (s *Store) Settle(ctx context.Context, run tgr.RunID, fn func(run tgr.Run, jobs []tgr.Job) (Change, error)) error {
	return s.write(ctx, "settle", func(t *tx) error {
		r, err := findRun(context.Background(), t, run, true)
		if err != nil {
			return err
		}
		if r.Status.Done() || r.WorkflowFile == "" {
			return nil
		}
		if waits, err := t.waits(r); err != nil || waits {
			return err
		}
		jobs, err := work(context.Background(), t, run, r.Attempt)
		if err != nil {
			return err
		}
		c, err := fn(r, plain(jobs))
		if err != nil {
			return err
		}
		if err := t.apply(jobs, c); err != nil {
			return err
		}
		if c.CancelRun != "" && r.CancelReason == "" {
			r.CancelReason = c.CancelRun
			if err := t.saveRun(&r); err != nil {
				return err
			}
		}
		if c.Empty() && !stale(r.Status, jobs) {
			return nil
		}
		return t.fold(run)
	})
}

// stale reports whether the stored status of a run is not what its jobs yield.
func stale(was tgr.Status, jobs []*job) bool {
	out := make([]tgr.Outcome, len(jobs))
	for i, j := range jobs {
		out[i] = j.outcome()
	}
	status, _ := tgr.Fold(out)
	return status != was
}

// apply makes the change c to jobs.
func (t *tx) apply(jobs []*job, c Change) error {
	steps := make(map[tgr.JobID]func(*job) error)
	var twice []tgr.JobID
	add := func(id tgr.JobID, fn func(*job) error) {
		if steps[id] != nil {
			twice = append(twice, id)
		}
		steps[id] = fn
	}
	for id, e := range c.Expand {
		add(id, func(j *job) error { return t.expand(j, e) })
	}
	for id, why := range c.Skip {
		add(id, func(j *job) error { return t.settled(j, j.complete(t.now, tgr.Skipped, "", why)) })
	}
	for id, r := range c.End {
		add(id, func(j *job) error { return t.settle(j, r) })
	}
	for id, rows := range c.Begin {
		add(id, func(j *job) error { return t.begin(j, rows) })
	}
	for id, at := range c.Queue {
		add(id, func(j *job) error { return t.pass(j, at) })
	}
	for id, why := range c.Wait {
		add(id, func(j *job) error {
			j.Reason = why
			return t.save(j, tgr.Pending)
		})
	}
	for id, why := range c.Cancel {
		add(id, func(j *job) error { return t.stop(j, why) })
	}
	if len(twice) > 0 {
		return tgr.Errorf("store.settle", tgr.Invalid, "job %d is changed in two ways at once", slices.Min(twice))
	}
	for _, j := range jobs { // in their order, so that instances are numbered and queued in it
		if fn := steps[j.ID]; fn != nil {
			if err := fn(j); err != nil {
				return err
			}
			delete(steps, j.ID)
		}
	}
	for id := range steps {
		return tgr.Errorf("store.settle", tgr.Invalid, "job %d is not a job of the run's current attempt", id)
	}
	return t.enqueue(c.Reports)
}

// settled saves a job that was pending, where its change went well.
func (t *tx) settled(j *job, err error) error {
	if err != nil {
		return err
	}
	return t.save(j, tgr.Pending)
}

// settle ends a job that no worker has.
func (t *tx) settle(j *job, r JobResult) error {
	from := j.Status
	if from == tgr.InProgress && j.Kind != tgr.CallJob || r.Conclusion == "" {
		return tgr.Errorf("store.settle", tgr.Conflict, "job %d is %s and cannot end as %q", j.ID, from, r.Conclusion)
	}
	if err := t.complete(j, r); err != nil {
		return err
	}
	return t.save(j, from)
}

// begin has a call go on: the jobs of its workflow are rows, where a re-run has not brought them along.
func (t *tx) begin(j *job, rows []tgr.Job) error {
	if j.Kind != tgr.CallJob || j.Status != tgr.Queued {
		return tgr.Errorf("store.settle", tgr.Conflict, "job %d is %s and cannot begin a call", j.ID, j.Status)
	}
	j.Status, j.Started, j.Reason = tgr.InProgress, t.now, ""
	if err := t.save(j, tgr.Queued); err != nil {
		return err
	}
	for _, row := range rows {
		if !strings.HasPrefix(row.Key, j.callPath()) {
			return tgr.Errorf("store.settle", tgr.Invalid, "job %q is not one of those that job %d calls", row.Key, j.ID)
		}
		if err := t.insert(pendingJob(tgr.Run{ID: j.Run, Attempt: j.Attempt}, row, t.now)); err != nil {
			return err
		}
	}
	return nil
}

// callPath is how the keys of the jobs begin that j calls.
func (j *job) callPath() string {
	if j.Total > 1 {
		return fmt.Sprintf("%s[%d]/", j.Key, j.Index)
	}
	return j.Key + "/"
}

// pass lets a pending job go on.
func (t *tx) pass(j *job, at time.Time) error {
	if j.Status != tgr.Pending {
		return tgr.Errorf("store.settle", tgr.Conflict, "job %d is %s and cannot be queued", j.ID, j.Status)
	}
	j.Gated, j.Reason, j.notBefore = false, "", at
	if at.After(t.now) {
		j.Reason = "waits until " + at.UTC().Format(time.RFC3339) + ", as its environment asks for"
	}
	if j.Group.Name == "" {
		if err := j.enqueue(t.now, j.Reason); err != nil {
			return err
		}
	}
	t.enter(j.Run, j.ID, j.Group)
	return t.save(j, tgr.Pending)
}

// stop cancels j, or marks it; of a call that goes on, the jobs that it called.
func (t *tx) stop(j *job, why string) error {
	from := j.Status
	if j.Kind == tgr.CallJob && from == tgr.InProgress {
		return t.stopCalled(j, why)
	}
	if err := j.stop(t.now, why); err != nil {
		return err
	}
	return t.save(j, from)
}

// stopCalled cancels what a call has called and that is not completed; Settle then ends the call.
func (t *tx) stopCalled(call *job, why string) error {
	t.nudged[call.Run] = true
	jobs, err := findJobs(context.Background(), t, "WHERE run_id = $1 AND attempt = $2 AND status <> 'completed' ORDER BY id", call.Run, call.Attempt)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if rest, ok := strings.CutPrefix(j.Key, call.callPath()); ok && !strings.Contains(rest, "/") {
			if err := t.stop(j, why); err != nil {
				return err
			}
		}
	}
	return nil
}

// expand replaces the pending job j by its instances.
func (t *tx) expand(j *job, e Expansion) error {
	if j.Status != tgr.Pending || len(e.Jobs) == 0 || e.MaxParallel < 0 {
		return tgr.Errorf("store.settle", tgr.Conflict, "job %d is %s and cannot become %d instances, %d at once", j.ID, j.Status, len(e.Jobs), e.MaxParallel)
	}
	for _, i := range e.Jobs {
		n := j.anew(t.now)
		n.Attempt, n.Created, n.MaxParallel = j.Attempt, j.Created, e.MaxParallel
		n.Name, n.Index, n.Total, n.Instance, n.Labels, n.ContinueOnError = i.Name, i.Index, i.Total, i.Instance, i.Labels, i.ContinueOnError
		n.Reason, n.Group, n.Environment, n.Gated = i.Reason, i.Group, i.Environment, i.Gated
		if i.Gated {
			n.queued = t.now
		}
		if i.Status != tgr.Pending && !i.Gated && i.Group.Name == "" {
			if err := n.enqueue(t.now, ""); err != nil {
				return err
			}
		}
		if err := t.insert(n); err != nil {
			return err
		}
		if !i.Gated {
			t.enter(n.Run, n.ID, n.Group)
		}
	}
	return t.exec(fmt.Sprintf("replace job %d", j.ID), "DELETE FROM jobs WHERE id = $1 AND status = 'pending'", j.ID)
}
