package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// Again says what a re-run repeats.
type Again struct {
	Failed bool      // jobs that failed, were cancelled or timed out
	Job    tgr.JobID // this job of the current attempt; 0 and not Failed: all
}

// Rerun begins a new attempt of a completed run and returns its number. Jobs that are repeated, and all that need
// them, are new rows; the others are carried over as new rows with the same result. Rows of the old
// attempt stay as they were. A run whose planning failed is planned again. An error of [tgr.Conflict] means that the
// run is not completed or that there is nothing to repeat.
//
// A repeated job that was expanded, and none of whose needs is repeated, keeps its Instance and is queued at
// once; any other is pending and is expanded anew by Settle.
func (s *Store) Rerun(ctx context.Context, id tgr.RunID, again Again) (attempt int, err error) {
	err = s.write(ctx, "rerun", func(t *tx) error {
		run, err := findRun(context.Background(), t, id, false)
		if err != nil {
			return err
		}
		if !run.Status.Done() {
			return tgr.Errorf("store.rerun", tgr.Conflict, "run %d is %s; it can be repeated when it is completed", id, run.Status)
		}
		old, err := work(context.Background(), t, id, run.Attempt)
		if err != nil {
			return err
		}
		run.Attempt++
		run.Status, run.Conclusion, run.Reason, run.CancelReason, run.Started, run.Finished = tgr.Queued, "", "", "", time.Time{}, time.Time{}
		attempt = run.Attempt
		if err := t.saveRun(&run); err != nil {
			return err
		}
		if run.WorkflowFile == "" {
			if err := t.insertPlanJob(run); err != nil {
				return err
			}
			return t.fold(id)
		}
		jobs, err := repeat(old, again, t.now)
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if err := t.insert(j); err != nil {
				return err
			}
		}
		// The run's own group comes first: its jobs enter theirs when it holds it.
		if run.Group.Name == "" {
			if err := t.enterJobs(run); err != nil {
				return err
			}
		}
		t.enterRun(run)
		return t.fold(id)
	})
	if err != nil {
		return 0, err
	}
	return attempt, nil
}

// repetition is which jobs of an attempt the next one repeats.
type repetition struct {
	old       []*job
	direct    map[tgr.JobID]bool // asked for
	repeated  map[string]bool    // keys of which something is repeated
	dependent map[string]bool    // keys that need a repeated one
	reopened  map[tgr.JobID]bool // calls of which some jobs are repeated
	gone      map[tgr.JobID]bool // jobs of a call that is repeated as a whole
}

// repeat makes the jobs of the next attempt from those of the last.
func repeat(old []*job, again Again, now time.Time) ([]*job, error) {
	r := repetition{old: old, direct: map[tgr.JobID]bool{}, repeated: map[string]bool{}, dependent: map[string]bool{},
		reopened: map[tgr.JobID]bool{}, gone: map[tgr.JobID]bool{}}
	for _, j := range old {
		failed := again.Failed && j.Conclusion.Failed() && len(r.called(j)) == 0 // of a call that failed, what failed
		if again.Job == j.ID || failed || again == (Again{}) && !strings.Contains(j.Key, "/") {
			r.direct[j.ID], r.repeated[j.Key] = true, true
		}
	}
	if len(r.direct) == 0 {
		return nil, tgr.Errorf("store.rerun", tgr.Conflict, "the last attempt has no such job to repeat")
	}
	r.spread()
	return r.jobs(now), nil
}

// called are the jobs that the call j has called directly.
func (r *repetition) called(j *job) []*job {
	var out []*job
	if j.Kind != tgr.CallJob {
		return nil
	}
	for _, o := range r.old {
		if rest, ok := strings.CutPrefix(o.Key, j.callPath()); ok && !strings.Contains(rest, "/") {
			out = append(out, o)
		}
	}
	return out
}

// spread finds what else is repeated, because of what is.
func (r *repetition) spread() {
	for more := true; more; {
		more = false
		for _, j := range r.old {
			if !r.dependent[j.Key] && slices.ContainsFunc(j.Needs, func(n string) bool { return r.repeated[n] }) {
				r.dependent[j.Key], r.repeated[j.Key], more = true, true, true
			}
			whole := r.direct[j.ID] || r.dependent[j.Key] || r.gone[j.ID]
			for _, c := range r.called(j) {
				switch {
				case whole && !r.gone[c.ID]:
					r.gone[c.ID], more = true, true
				case !whole && !r.reopened[j.ID] && r.repeated[c.Key]:
					r.reopened[j.ID], r.repeated[j.Key], more = true, true, true
				}
			}
		}
	}
}

// jobs are those of the next attempt, in the order of the last.
func (r *repetition) jobs(now time.Time) []*job {
	var out []*job
	anew := map[string]bool{} // keys of jobs that are expanded anew
	var grouped []string      // how the keys of jobs begin whose call has to wait for its group first
	for _, j := range r.old {
		if r.reopened[j.ID] && j.Group.Name != "" {
			grouped = append(grouped, j.callPath())
		}
	}
	for _, j := range r.old {
		waits := slices.ContainsFunc(grouped, func(path string) bool { return strings.HasPrefix(j.Key, path) })
		switch {
		case r.gone[j.ID], anew[j.Key]:
		case r.dependent[j.Key], r.direct[j.ID] && (j.Instance == nil || waits):
			anew[j.Key] = true
			out = append(out, j.anew(now))
		case r.direct[j.ID]:
			out = append(out, j.again(now))
		case r.reopened[j.ID]:
			out = append(out, j.reopened(now, waits))
		default:
			out = append(out, j.carried(now))
		}
	}
	// A key that is expanded anew has no other rows.
	return slices.DeleteFunc(out, func(j *job) bool { return anew[j.Key] && j.Instance != nil })
}

// anew is the job before its matrix was expanded, in the next attempt.
func (j *job) anew(now time.Time) *job {
	return &job{template: j.template, Job: tgr.Job{
		Run: j.Run, Attempt: j.Attempt + 1, Kind: j.Kind, Key: j.Key, Name: j.template, Needs: j.Needs, Uses: j.Uses,
		Total: 1, Status: tgr.Pending, Created: now,
	}}
}

// again is the expanded job in the next attempt, to be run once more. One with an environment is gated as before, and so
// is one that failed without a try, as no machine has its labels: whether one has them now is for Settle to see.
func (j *job) again(now time.Time) *job {
	n := j.anew(now)
	n.Name, n.Index, n.Total, n.Instance, n.Labels, n.ContinueOnError = j.Name, j.Index, j.Total, j.Instance, j.Labels, j.ContinueOnError
	n.MaxParallel, n.Group, n.Environment, n.Gated = j.MaxParallel, j.Group, j.Environment, j.Environment != "" || j.Kind == tgr.WorkJob && j.Tries == 0 && j.Conclusion == tgr.Failure
	if n.queued = now; n.Group.Name == "" && !n.Gated { // else it waits
		n.Status = tgr.Queued
	}
	return n
}

// reopened is a call in the next attempt of which some jobs are repeated. It goes on at once, unless it has to wait
// for its group, or for that of a call around it.
func (j *job) reopened(now time.Time, waits bool) *job {
	n := j.again(now)
	if n.Status == tgr.Queued && !waits {
		n.Status, n.Started = tgr.InProgress, now
	}
	return n
}

// carried is the job in the next attempt, as it ended.
func (j *job) carried(now time.Time) *job {
	n := *j
	n.ID, n.Attempt, n.Created = 0, j.Attempt+1, now
	if n.Origin == 0 {
		n.Origin = j.ID
	}
	return &n
}
