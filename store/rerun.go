package store

import (
	"context"
	"slices"
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
		t.enter(id, 0, run.Group)
		return t.fold(id)
	})
	if err != nil {
		return 0, err
	}
	return attempt, nil
}

// repeat makes the jobs of the next attempt from those of the last.
func repeat(old []*job, again Again, now time.Time) ([]*job, error) {
	direct := make(map[tgr.JobID]bool) // asked for
	repeated := make(map[string]bool)  // keys of which something is repeated
	dependent := make(map[string]bool) // keys that need a repeated one
	groups := make(map[string][]*job)  // by key
	var order []string                 // of keys
	for _, j := range old {
		if groups[j.Key] == nil {
			order = append(order, j.Key)
		}
		groups[j.Key] = append(groups[j.Key], j)
		if again.Job == j.ID || again.Failed && j.Conclusion.Failed() || again == (Again{}) {
			direct[j.ID], repeated[j.Key] = true, true
		}
	}
	if len(direct) == 0 {
		return nil, tgr.Errorf("store.rerun", tgr.Conflict, "the last attempt has no such job to repeat")
	}
	for more := true; more; {
		more = false
		for _, j := range old {
			if !dependent[j.Key] && slices.ContainsFunc(j.Needs, func(n string) bool { return repeated[n] }) {
				dependent[j.Key], repeated[j.Key], more = true, true, true
			}
		}
	}
	var jobs []*job
	for _, key := range order {
		if dependent[key] {
			jobs = append(jobs, groups[key][0].anew(now))
			continue
		}
		for _, j := range groups[key] {
			switch {
			case !direct[j.ID]:
				jobs = append(jobs, j.carried(now))
			case j.Instance == nil:
				jobs = append(jobs, j.anew(now))
			default:
				jobs = append(jobs, j.again(now))
			}
		}
	}
	return jobs, nil
}

// anew is the job before its matrix was expanded, in the next attempt.
func (j *job) anew(now time.Time) *job {
	return &job{template: j.template, Job: tgr.Job{
		Run: j.Run, Attempt: j.Attempt + 1, Kind: j.Kind, Key: j.Key, Name: j.template, Needs: j.Needs, Total: 1, Status: tgr.Pending, Created: now,
	}}
}

// again is the expanded job in the next attempt, to be run once more.
func (j *job) again(now time.Time) *job {
	n := j.anew(now)
	n.Name, n.Index, n.Total, n.Instance, n.Labels, n.ContinueOnError = j.Name, j.Index, j.Total, j.Instance, j.Labels, j.ContinueOnError
	n.maxParallel, n.Group = j.maxParallel, j.Group
	if n.Group.Name == "" { // else it waits for its group
		n.Status, n.queued = tgr.Queued, now
	}
	return n
}

// carried is the job in the next attempt, as it ended.
func (j *job) carried(now time.Time) *job {
	n := *j
	n.ID, n.Attempt, n.Created = 0, j.Attempt+1, now
	if n.origin == 0 {
		n.origin = j.ID
	}
	return &n
}
