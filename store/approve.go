package store

import (
	"context"
	"slices"
	"strings"

	"github.com/terraphim/tgr"
)

// Approve writes down what somebody decided of a run that waits for it, in its current attempt: of the jobs of one
// environment, or, where a.Environment is "", of the run as a whole, which is on hold; a run that is not on hold but waits
// for a single environment means that one. A run that is rejected is to be cancelled. Settle does the rest. It
// returns the environment. An error of [tgr.Conflict] means that nothing waits for such an approval.
func (s *Store) Approve(ctx context.Context, id tgr.RunID, a tgr.Approval) (environment string, err error) {
	err = s.write(ctx, "approve", func(t *tx) error {
		run, err := findRun(context.Background(), t, id, false)
		if err != nil {
			return err
		}
		waiting, err := t.waiting(run)
		if err != nil {
			return err
		}
		requested := false
		hold := run.Hold != "" && run.CancelReason == "" && !run.Status.Done()
		if a.Environment == "" && !hold && len(waiting) == 1 {
			a.Environment = waiting[0]
		}
		i := slices.IndexFunc(waiting, func(w string) bool { return strings.EqualFold(w, a.Environment) })
		switch {
		case a.Environment == "" && hold && a.Approved:
			run.Hold, requested = "", true
		case a.Environment == "" && hold:
			run.CancelReason = "rejected by " + a.By
			if a.Comment != "" {
				run.CancelReason += ": " + a.Comment
			}
		case a.Environment == "" && len(waiting) > 1:
			return tgr.Errorf("store.approve", tgr.Conflict, "run %d waits for the approval of several environments: %s", id, strings.Join(waiting, ", "))
		case i < 0 && a.Environment != "":
			return tgr.Errorf("store.approve", tgr.Conflict, "run %d does not wait for the approval of the environment %s", id, a.Environment)
		case i < 0:
			return tgr.Errorf("store.approve", tgr.Conflict, "run %d does not wait for an approval", id)
		default:
			a.Environment = waiting[i]
		}
		environment = a.Environment
		a.Attempt, a.At = run.Attempt, t.now
		run.Approvals = append(run.Approvals, a)
		if err := t.saveRun(&run); err != nil {
			return err
		}
		if requested {
			t.enterRun(run)
			if err := t.follow(&run, "requested"); err != nil {
				return err
			}
		}
		return t.fold(id)
	})
	return environment, err
}

// waiting lists the environments for which jobs of a run's current attempt wait at their gate, and of which nothing was
// decided.
func (t *tx) waiting(run tgr.Run) ([]string, error) {
	jobs, err := work(context.Background(), t, run.ID, run.Attempt)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, j := range jobs {
		if j.Gated && j.Environment != "" && j.Status == tgr.Pending && run.Approval(j.Environment) == nil &&
			!slices.ContainsFunc(out, func(w string) bool { return strings.EqualFold(w, j.Environment) }) {
			out = append(out, j.Environment)
		}
	}
	return out, nil
}
