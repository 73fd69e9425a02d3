package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/terraphim/tgr"
)

// Change is what Settle's function wants done to the jobs of a run. A job may be named once.
type Change struct {
	Expand map[tgr.JobID]Expansion // a pending job is replaced by its instances
	Skip   map[tgr.JobID]string    // a pending job completes as skipped, with the reason
	Fail   map[tgr.JobID]Failure   // a pending job completes: its matrix or its condition could not be evaluated
	Queue  []tgr.JobID             // a pending job that needs no expansion, or was expanded as pending, is queued
	Cancel map[tgr.JobID]string    // pending and queued ones complete as cancelled, running ones are marked

	Reports []Outgoing // for the outbox
}

// Empty reports whether c changes nothing.
func (c Change) Empty() bool {
	return len(c.Expand)+len(c.Skip)+len(c.Fail)+len(c.Queue)+len(c.Cancel)+len(c.Reports) == 0
}

// Expansion is what a pending job becomes.
type Expansion struct {
	// Jobs are its instances: Name, Index, Total, Instance, Labels, ContinueOnError and Group are used; Key, Needs and
	// the rest come from the pending job. Each is queued, or stays pending: with a Group until it is the one whose
	// turn it is, or with its Reason where its Status says so, for a later Queue.
	Jobs        []tgr.Job
	MaxParallel int // how many of them may run at once; 0: no limit
}

// Failure is how a job ends that never ran.
type Failure struct {
	Conclusion tgr.Conclusion // "": StartupFailure
	Blame      tgr.Blame      // "": BlameWorkflow
	Reason     string
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
	for id, f := range c.Fail {
		f.Conclusion, f.Blame = cmp.Or(f.Conclusion, tgr.StartupFailure), cmp.Or(f.Blame, tgr.BlameWorkflow)
		add(id, func(j *job) error { return t.settled(j, j.complete(t.now, f.Conclusion, f.Blame, f.Reason)) })
	}
	for _, id := range c.Queue {
		add(id, func(j *job) error { return t.settled(j, j.enqueue(t.now, "")) })
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

// stop cancels j, or marks it.
func (t *tx) stop(j *job, why string) error {
	from := j.Status
	if err := j.stop(t.now, why); err != nil {
		return err
	}
	return t.save(j, from)
}

// expand replaces the pending job j by its instances.
func (t *tx) expand(j *job, e Expansion) error {
	if j.Status != tgr.Pending || len(e.Jobs) == 0 || e.MaxParallel < 0 {
		return tgr.Errorf("store.settle", tgr.Conflict, "job %d is %s and cannot become %d instances, %d at once", j.ID, j.Status, len(e.Jobs), e.MaxParallel)
	}
	for _, i := range e.Jobs {
		n := j.anew(t.now)
		n.Attempt, n.Created, n.maxParallel = j.Attempt, j.Created, e.MaxParallel
		n.Name, n.Index, n.Total, n.Instance, n.Labels, n.ContinueOnError = i.Name, i.Index, i.Total, i.Instance, i.Labels, i.ContinueOnError
		n.Reason, n.Group = i.Reason, i.Group
		if i.Status != tgr.Pending && i.Group.Name == "" {
			if err := n.enqueue(t.now, ""); err != nil {
				return err
			}
		}
		if err := t.insert(n); err != nil {
			return err
		}
		t.enter(n.Run, n.ID, n.Group)
	}
	return t.exec(fmt.Sprintf("replace job %d", j.ID), "DELETE FROM jobs WHERE id = $1 AND status = 'pending'", j.ID)
}
