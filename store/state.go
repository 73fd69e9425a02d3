package store

import (
	"context"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/terraphim/tgr"
)

// enqueue makes j wait for a machine. A reason says why it waits once more.
func (j *job) enqueue(now time.Time, reason string) error {
	if err := tgr.NextJob(j.Status, tgr.Queued); err != nil {
		return err
	}
	j.Status, j.Reason, j.queued, j.Started = tgr.Queued, reason, now, time.Time{}
	j.free()
	return nil
}

// claim gives j to an owner and forgets what an earlier try left.
func (j *job) claim(now time.Time, owner string, lease time.Duration) error {
	if err := tgr.NextJob(j.Status, tgr.InProgress); err != nil {
		return err
	}
	j.Status, j.Started = tgr.InProgress, now
	j.Tries++
	j.Machine, j.Isolation, j.Summary, j.Steps, j.Annotations, j.Outputs = "", "", "", nil, nil, nil
	j.owner, j.token, j.until = owner, tgr.NewToken(), now.Add(lease)
	return nil
}

// complete ends j. Steps that had not ended are closed: nothing of a completed job runs.
func (j *job) complete(now time.Time, c tgr.Conclusion, b tgr.Blame, reason string) error {
	if err := tgr.NextJob(j.Status, tgr.Completed); err != nil {
		return err
	}
	j.Status, j.Conclusion, j.Blame, j.Reason, j.Finished = tgr.Completed, c, b, reason, now
	j.Gated = false
	for i := range j.Steps {
		s := &j.Steps[i]
		switch s.Status {
		case tgr.InProgress:
			s.Conclusion, s.Outcome, s.Finished = tgr.Cancelled, tgr.Cancelled, now
		case tgr.Pending:
			s.Conclusion, s.Outcome = tgr.Skipped, tgr.Skipped
		}
		s.Status = tgr.Completed
	}
	j.free()
	return nil
}

// giveBack ends a try for a fault of ours. One that is excused does not count.
func (j *job) giveBack(now time.Time, reason string, excused bool) (requeued bool, err error) {
	if excused {
		j.Excused++
	}
	tries := j.Tries - j.Excused
	switch {
	case j.cancel:
		return false, j.complete(now, tgr.Cancelled, "", j.cancelReason)
	case tries >= j.maxTries():
		return false, j.complete(now, tgr.Failure, tgr.BlameOurs, fmt.Sprintf("%s; given up after %d tries", reason, j.Tries))
	}
	err = j.enqueue(now, fmt.Sprintf("%s; try %d of %d follows", reason, tries+1, j.maxTries()))
	if j.notBefore = now.Add(min(time.Second<<max(0, tries-1), longestPause)); excused {
		j.notBefore = now
	}
	return true, err
}

// longestPause is the longest that a job waits after a fault of ours.
const longestPause = 2 * time.Minute

// maxTries is how often j may be tried. Planning costs little, and what keeps it from succeeding is most often that
// GitHub is not there: it gets six minutes.
func (j *job) maxTries() int {
	if j.Kind == tgr.PlanJob {
		return maxPlans
	}
	return MaxTries
}

// complete ends j as r says, with its outputs if there is room for them.
func (t *tx) complete(j *job, r JobResult) error {
	j.Outputs, j.Annotations, j.Summary = r.Outputs, r.Annotations, r.Summary
	if len(r.Outputs) > 0 {
		var chars int // of their JSON: a few more than of the outputs themselves
		err := t.QueryRow("SELECT COALESCE(SUM(LENGTH(outputs)), 0) FROM jobs WHERE run_id = $1 AND attempt = $2 AND id <> $3", j.Run, j.Attempt, j.ID).Scan(&chars)
		if err != nil {
			return fmt.Errorf("measure the outputs of run %d: %w", j.Run, err)
		}
		for name, v := range r.Outputs {
			chars += utf8.RuneCountInString(name) + utf8.RuneCountInString(v)
		}
		if 2*chars > t.s.cfg.MaxOutputs {
			j.Outputs = nil
			if !r.Conclusion.Failed() {
				r.Conclusion, r.Blame, r.Reason = tgr.Failure, tgr.BlameUser,
					fmt.Sprintf("the outputs of the run's jobs have more than %d bytes, in UTF-16, with those of this one, which are dropped", t.s.cfg.MaxOutputs)
			}
		}
	}
	return j.complete(t.now, r.Conclusion, r.Blame, r.Reason)
}

// outcome is what Fold needs of j.
func (j *job) outcome() tgr.Outcome {
	return tgr.Outcome{Status: j.Status, Conclusion: j.Conclusion, ContinueOnError: j.ContinueOnError}
}

// free ends the lease of j.
func (j *job) free() {
	j.owner, j.token, j.until, j.cancel, j.cancelReason = "", "", time.Time{}, false, ""
}

// stop cancels j: at once where it does not run, else by marking it.
func (j *job) stop(now time.Time, reason string) error {
	if j.Status == tgr.InProgress {
		j.cancel, j.cancelReason = true, reason
		return nil
	}
	return j.complete(now, tgr.Cancelled, "", reason)
}

// step replaces the steps of j where each goes forward.
func (j *job) step(steps []tgr.Step) error {
	for i, was := range j.Steps {
		if i >= len(steps) || steps[i].Number != was.Number {
			return tgr.Errorf("store.steps", tgr.Invalid, "step %d of job %d is missing from its new steps", was.Number, j.ID)
		}
		if now := steps[i]; now.Status != was.Status {
			if err := tgr.NextStep(was.Status, now.Status); err != nil {
				return fmt.Errorf("step %d of job %d: %w", was.Number, j.ID, err)
			}
		}
	}
	j.Steps = slices.Clone(steps)
	return nil
}

// held reads a running job that belongs to token.
func (t *tx) held(id tgr.JobID, token string) (*job, error) {
	j, err := findJob(context.Background(), t, id)
	if err != nil {
		return nil, err
	}
	if j.Status != tgr.InProgress || j.token != token {
		return nil, tgr.Errorf("store.lease", tgr.Conflict, "job %d is %s and no longer held by this lease", id, j.outcome())
	}
	return j, nil
}

// change reads a job that belongs to token, lets fn change it, and saves it.
func (s *Store) change(ctx context.Context, op string, id tgr.JobID, token string, fn func(*tx, *job) error) error {
	return s.write(ctx, op, func(t *tx) error {
		j, err := t.held(id, token)
		if err != nil {
			return err
		}
		if err := fn(t, j); err != nil {
			return err
		}
		return t.save(j, tgr.InProgress)
	})
}

// fold derives the status of a run anew, stores it where it differs, and reports the change that made it necessary.
func (t *tx) fold(id tgr.RunID) error {
	ctx := context.Background()
	run, err := findRun(ctx, t, id, false)
	if err != nil {
		return err
	}
	jobs, err := work(ctx, t, id, run.Attempt)
	if err != nil {
		return err
	}
	status, conclusion, reason := run.Status, run.Conclusion, run.Reason
	switch {
	case run.Status.Done():
	case run.WorkflowFile == "":
		plan, err := findPlanJob(ctx, t, run)
		if err != nil {
			return err
		}
		if status = tgr.Queued; plan.Status.Done() {
			status, conclusion, reason = tgr.Completed, plan.Conclusion, plan.Reason
		}
	default:
		out := make([]tgr.Outcome, len(jobs))
		for i, j := range jobs {
			out[i] = j.outcome()
		}
		status, conclusion = tgr.Fold(out)
		if conclusion == tgr.Cancelled {
			reason = run.CancelReason
		}
	}
	if status != run.Status || reason != run.Reason {
		run.Status, run.Conclusion, run.Reason = status, conclusion, reason
		if err := t.saveRun(&run); err != nil {
			return err
		}
	}
	return t.notify(run, plain(jobs))
}

// saveRun writes the status of run, and the times that follow from it.
func (t *tx) saveRun(run *tgr.Run) error {
	if run.Started.IsZero() && (run.Status == tgr.InProgress || run.Status == tgr.Completed) {
		run.Started = t.now
	}
	if run.Status.Done() {
		run.Finished = t.now
		if err := t.missed(run); err != nil {
			return err
		}
	}
	if run.Status.Done() && run.Group.Name != "" {
		if err := t.leave(run.ID, 0); err != nil {
			return err
		}
	}
	approvals, err := encode(run.Approvals, len(run.Approvals))
	if err != nil {
		return err
	}
	err = t.exec(fmt.Sprintf("save run %d", run.ID), `UPDATE runs SET status = $1, conclusion = $2, reason = $3, started = $4, finished = $5,
		attempt = $6, cancel_reason = $7, hold = $8, approvals = $9 WHERE id = $10`,
		run.Status, run.Conclusion, run.Reason, nanos(run.Started), nanos(run.Finished), run.Attempt, run.CancelReason, run.Hold, approvals, run.ID)
	switch {
	case err != nil:
		return err
	case run.Status == tgr.InProgress:
		return t.follow(run, "in_progress")
	case run.Status.Done():
		return t.follow(run, "completed")
	}
	return nil
}

// Refresh reports a run once more: what Config.Reports makes of it may be more than it was.
func (s *Store) Refresh(ctx context.Context, id tgr.RunID) error {
	return s.write(ctx, "refresh", func(t *tx) error {
		run, err := findRun(context.Background(), t, id, false)
		if err != nil {
			return err
		}
		jobs, err := work(context.Background(), t, id, run.Attempt)
		if err != nil {
			return err
		}
		return t.notify(run, plain(jobs))
	})
}

// notify asks Config.Reports what to report of a change, and enqueues it.
func (t *tx) notify(run tgr.Run, jobs []tgr.Job) error {
	t.touch(run.ID)
	if t.s.cfg.Reports == nil {
		return nil
	}
	run.Plan, run.Event.Payload = nil, nil
	return t.enqueue(t.s.cfg.Reports(run, jobs))
}
