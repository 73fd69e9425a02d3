package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/terraphim/tgr"
)

const runColumns = `r.id, r.delivery, r.number, r.attempt, r.workflow_file, r.workflow_name, r.title, r.status, r.conclusion, r.reason,
	r.cancel_reason, r.grp, r.hold, r.approvals, r.created, r.started, r.finished, COALESCE(r.event, d.event)`

// findRuns reads the runs that tail (WHERE …) selects; full adds their plans and payloads.
func findRuns(ctx context.Context, q querier, full bool, tail string, args ...any) ([]tgr.Run, error) {
	columns := runColumns
	if full {
		columns += ", r.plan, d.payload"
	}
	rows, err := q.QueryContext(ctx, "SELECT "+columns+" FROM runs r JOIN deliveries d ON d.id = r.delivery "+tail, args...)
	if err != nil {
		return nil, fmt.Errorf("read runs: %w", err)
	}
	defer rows.Close()
	var runs []tgr.Run
	for rows.Next() {
		var r tgr.Run
		var created, started, finished int64
		var event, group, approvals string
		into := []any{&r.ID, &r.Delivery, &r.Number, &r.Attempt, &r.WorkflowFile, &r.WorkflowName, &r.Title, &r.Status, &r.Conclusion, &r.Reason,
			&r.CancelReason, &group, &r.Hold, &approvals, &created, &started, &finished, &event}
		var payload []byte
		if full {
			into = append(into, &r.Plan, &payload)
		}
		if err := rows.Scan(into...); err != nil {
			return nil, fmt.Errorf("read runs: %w", err)
		}
		r.Created, r.Started, r.Finished = moment(created), moment(started), moment(finished)
		if err := decode(fmt.Sprintf("event of run %d", r.ID), event, &r.Event); err != nil {
			return nil, err
		}
		if err := decode(fmt.Sprintf("group of run %d", r.ID), group, &r.Group); err != nil {
			return nil, err
		}
		if err := decode(fmt.Sprintf("approvals of run %d", r.ID), approvals, &r.Approvals); err != nil {
			return nil, err
		}
		if len(payload) > 0 {
			r.Event.Payload = payload
		}
		runs = append(runs, r)
	}
	return runs, rows.Err()
}

// findRun reads one run.
func findRun(ctx context.Context, q querier, id tgr.RunID, full bool) (tgr.Run, error) {
	runs, err := findRuns(ctx, q, full, "WHERE r.id = $1", id)
	if err != nil {
		return tgr.Run{}, err
	}
	if len(runs) == 0 {
		return tgr.Run{}, tgr.Errorf("store.run", tgr.NotFound, "there is no run %d", id)
	}
	return runs[0], nil
}

// branchOf is the branch or tag by which a run is found.
func branchOf(e tgr.Event) string {
	if e.HeadRef != "" {
		return e.HeadRef
	}
	return strings.TrimPrefix(strings.TrimPrefix(e.Ref, "refs/heads/"), "refs/tags/")
}

// saveEvent gives a run an event that is not its delivery's.
func (t *tx) saveEvent(run tgr.Run) error {
	event, err := json.Marshal(run.Event)
	if err != nil {
		return err
	}
	return t.exec(fmt.Sprintf("event of run %d", run.ID), "UPDATE runs SET event = $1, event_name = $2, branch = $3 WHERE id = $4",
		string(event), run.Event.Name, branchOf(run.Event), run.ID)
}

// insertRun adds run, queued and not planned, and sets its ID.
func (t *tx) insertRun(run *tgr.Run) error {
	e := run.Event
	err := t.QueryRow(`INSERT INTO runs (delivery, repo_id, repo, branch, event_name, attempt, status, created)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id`,
		run.Delivery, e.Repo.ID, e.Repo.FullName, branchOf(e), e.Name, run.Attempt, run.Status, nanos(run.Created)).Scan(&run.ID)
	if err != nil {
		return fmt.Errorf("add a run of delivery %s: %w", run.Delivery, err)
	}
	return nil
}

// runIDs reads a column of run ids.
func runIDs(ctx context.Context, q querier, query string, args ...any) ([]tgr.RunID, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	defer rows.Close()
	ids := []tgr.RunID{}
	for rows.Next() {
		var id tgr.RunID
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("list runs: %w", err)
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// Run returns a run with its plan and its event's payload, or an error of [tgr.NotFound].
func (s *Store) Run(ctx context.Context, id tgr.RunID) (tgr.Run, error) {
	run, err := findRun(ctx, s.r, id, true)
	return run, s.dialect.fault("run", err)
}

// RunFilter selects runs; a zero field selects all.
type RunFilter struct {
	Repo     string // full name
	Workflow string // file, or name
	Branch   string // the event's branch or tag, or a pull request's head branch
	Event    string
	Status   tgr.Status
	Delivery tgr.DeliveryID
	Before   tgr.RunID // only runs with a lower id: the next page
	Limit    int       // 0: 50; at most 1000
}

// where is f as SQL; %[1]d in a condition is its parameter's number.
func (f RunFilter) where() (string, []any) {
	var conds []string
	var args []any
	add := func(cond string, v any, set bool) {
		if set {
			args = append(args, v)
			conds = append(conds, fmt.Sprintf(cond, len(args)))
		}
	}
	add("r.repo = $%[1]d", f.Repo, f.Repo != "")
	add("(r.workflow_file = $%[1]d OR r.workflow_name = $%[1]d)", f.Workflow, f.Workflow != "")
	add("r.branch = $%[1]d", f.Branch, f.Branch != "")
	add("r.event_name = $%[1]d", f.Event, f.Event != "")
	add("r.status = $%[1]d", f.Status, f.Status != "")
	add("r.delivery = $%[1]d", f.Delivery, f.Delivery != "")
	add("r.id < $%[1]d", f.Before, f.Before > 0)
	tail := ""
	if len(conds) > 0 {
		tail = "WHERE " + strings.Join(conds, " AND ")
	}
	args = append(args, page(f.Limit))
	return fmt.Sprintf("%s ORDER BY r.id DESC LIMIT $%d", tail, len(args)), args
}

// Runs lists runs, the latest first, without plans and payloads.
func (s *Store) Runs(ctx context.Context, f RunFilter) ([]tgr.Run, error) {
	tail, args := f.where()
	runs, err := findRuns(ctx, s.r, false, tail, args...)
	return runs, s.dialect.fault("runs", err)
}

// Unsettled lists the planned runs that are not completed, the oldest first: those that need Settle.
func (s *Store) Unsettled(ctx context.Context) ([]tgr.RunID, error) {
	ids, err := runIDs(ctx, s.r, "SELECT id FROM runs WHERE status <> 'completed' AND workflow_file <> '' ORDER BY id")
	return ids, s.dialect.fault("unsettled", err)
}

// CancelRun cancels the current attempt of a run, or of it one job where job is not 0. A run that has begun gets its
// CancelReason, and Settle decides what that means for each of its jobs: some run in spite of it, such as those with
// `if: always()`. Everything else (a run that waits to be planned or for its group, a run that was to be cancelled
// already, a single job) is cancelled without further questions: jobs that are pending or queued complete at once,
// those that run are marked, which Beat tells their worker. by is a person or a part of the system, for the
// reason: "cancelled by ada: superseded". An error of [tgr.Conflict] means that the run, or that job, is completed.
func (s *Store) CancelRun(ctx context.Context, id tgr.RunID, only tgr.JobID, reason, by string) error {
	why := "cancelled by " + by
	if reason != "" {
		why += ": " + reason
	}
	return s.write(ctx, "cancel", func(t *tx) error {
		run, err := findRun(context.Background(), t, id, false)
		if err != nil {
			return err
		}
		if run.Status.Done() {
			return tgr.Errorf("store.cancel", tgr.Conflict, "run %d is completed (%s)", id, run.Conclusion)
		}
		waits, err := t.waits(run)
		switch {
		case err != nil:
			return err
		case only != 0:
			return t.cancelJob(run, only, why)
		case waits || run.WorkflowFile == "" || run.CancelReason != "":
			return t.cancelAll(run, why)
		}
		run.CancelReason = why
		if err := t.saveRun(&run); err != nil {
			return err
		}
		return t.fold(id)
	})
}

// cancelAll cancels every job of a run's current attempt, whatever its condition says.
func (t *tx) cancelAll(run tgr.Run, why string) error {
	if run.CancelReason == "" {
		run.CancelReason = why
		if err := t.saveRun(&run); err != nil {
			return err
		}
	}
	jobs, err := findJobs(context.Background(), t, "WHERE run_id = $1 AND attempt = $2 AND status <> 'completed' ORDER BY id", run.ID, run.Attempt)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Kind == tgr.CallJob && j.Status == tgr.InProgress {
			continue // it ends with the jobs that it called, which are in the list
		}
		if err := t.stop(j, why); err != nil {
			return err
		}
	}
	return t.fold(run.ID)
}

// cancelJob cancels one job of a run's current attempt.
func (t *tx) cancelJob(run tgr.Run, id tgr.JobID, why string) error {
	j, err := findJob(context.Background(), t, id)
	switch {
	case err != nil:
		return err
	case j.Run != run.ID || j.Attempt != run.Attempt:
		return tgr.Errorf("store.cancel", tgr.NotFound, "run %d has no job %d in attempt %d", run.ID, id, run.Attempt)
	case j.Status.Done():
		return tgr.Errorf("store.cancel", tgr.Conflict, "job %d is completed (%s)", id, j.Conclusion)
	}
	if err := t.stop(j, why); err != nil {
		return err
	}
	return t.fold(run.ID)
}
