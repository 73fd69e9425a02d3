package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/terraphim/tgr"
)

// querier reads: inside a transaction, or from the pool of readers.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// nanos is how a time is stored.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// moment is a stored time.
func moment(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// encode is how a list or map is stored: "" where it is empty.
func encode[T any](v T, n int) (string, error) {
	if n == 0 {
		return "", nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

func decode(what, s string, v any) error {
	if s == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(s), v); err != nil {
		return fmt.Errorf("stored %s: %w", what, err)
	}
	return nil
}

// job is a row of jobs: a tgr.Job with what only the store knows.
type job struct {
	tgr.Job
	template     string    // name before the expansion
	queued       time.Time // as tgr.Job has it, but for notBefore
	notBefore    time.Time
	owner        string
	token        string
	until        time.Time
	cancel       bool
	cancelReason string
}

const jobColumns = `id, run_id, attempt, kind, key, name, template, origin, needs, idx, total, instance, labels, continue_on_error,
	max_parallel, status, conclusion, blame, reason, tries, outputs, machine, isolation, steps, annotations,
	created, queued, started, finished, owner, token, lease_until, cancel, cancel_reason, grp, summary, not_before, uses, environment, gated, excused`

// scanJob reads a row of jobColumns.
func scanJob(scan func(...any) error) (*job, error) {
	var j job
	var needs, instance, labels, outputs, steps, annotations, group string
	var created, queued, started, finished, until, notBefore int64
	err := scan(&j.ID, &j.Run, &j.Attempt, &j.Kind, &j.Key, &j.Name, &j.template, &j.Origin, &needs, &j.Index, &j.Total, &instance, &labels,
		&j.ContinueOnError, &j.MaxParallel, &j.Status, &j.Conclusion, &j.Blame, &j.Reason, &j.Tries, &outputs, &j.Machine,
		&j.Isolation, &steps, &annotations, &created, &queued, &started, &finished, &j.owner, &j.token, &until, &j.cancel, &j.cancelReason, &group, &j.Summary, &notBefore, &j.Uses, &j.Environment, &j.Gated, &j.Excused)
	if err != nil {
		return nil, err
	}
	if instance != "" {
		j.Instance = json.RawMessage(instance)
	}
	j.Created, j.queued, j.Started, j.Finished, j.until = moment(created), moment(queued), moment(started), moment(finished), moment(until)
	j.notBefore = moment(notBefore)
	for _, c := range []struct {
		name, text string
		into       any
	}{{"needs", needs, &j.Needs}, {"labels", labels, &j.Labels}, {"outputs", outputs, &j.Outputs}, {"steps", steps, &j.Steps}, {"annotations", annotations, &j.Annotations}, {"group", group, &j.Group}} {
		if err := decode(fmt.Sprintf("%s of job %d", c.name, j.ID), c.text, c.into); err != nil {
			return nil, err
		}
	}
	return &j, nil
}

// findJobs reads the jobs that tail (WHERE …) selects.
func findJobs(ctx context.Context, q querier, tail string, args ...any) ([]*job, error) {
	rows, err := q.QueryContext(ctx, "SELECT "+jobColumns+" FROM jobs "+tail, args...)
	if err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	defer rows.Close()
	var jobs []*job
	for rows.Next() {
		j, err := scanJob(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("read jobs: %w", err)
		}
		jobs = append(jobs, j)
	}
	return jobs, rows.Err()
}

// findJob reads one job.
func findJob(ctx context.Context, q querier, id tgr.JobID) (*job, error) {
	jobs, err := findJobs(ctx, q, "WHERE id = $1", id)
	if err != nil {
		return nil, err
	}
	if len(jobs) == 0 {
		return nil, tgr.Errorf("store.job", tgr.NotFound, "there is no job %d", id)
	}
	return jobs[0], nil
}

// work reads the jobs of an attempt, those that call workflows included.
func work(ctx context.Context, q querier, run tgr.RunID, attempt int) ([]*job, error) {
	return findJobs(ctx, q, "WHERE run_id = $1 AND attempt = $2 AND kind <> $3 ORDER BY id", run, attempt, tgr.PlanJob)
}

// plain drops what only the store knows.
func plain(jobs []*job) []tgr.Job {
	out := make([]tgr.Job, len(jobs))
	for i, j := range jobs {
		out[i] = j.Job
		if out[i].Queued = j.queued; j.notBefore.After(j.queued) {
			out[i].Queued = j.notBefore
		}
	}
	return out
}

// insert adds j and sets its ID.
func (t *tx) insert(j *job) error {
	needs, err1 := encode(j.Needs, len(j.Needs))
	labels, err2 := encode(j.Labels, len(j.Labels))
	outputs, err3 := encode(j.Outputs, len(j.Outputs))
	steps, err4 := encode(j.Steps, len(j.Steps))
	annotations, err5 := encode(j.Annotations, len(j.Annotations))
	group, err6 := encode(j.Group, len(j.Group.Name))
	if err := firstOf(err1, err2, err3, err4, err5, err6); err != nil {
		return fmt.Errorf("encode job %q: %w", j.Key, err)
	}
	err := t.QueryRow(`INSERT INTO jobs (run_id, attempt, kind, key, name, template, origin, needs, idx, total, instance, labels,
		continue_on_error, max_parallel, status, conclusion, blame, reason, tries, outputs, machine, isolation, steps, annotations,
		created, queued, started, finished, grp, summary, uses, environment, gated, repo_id)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, (SELECT repo_id FROM runs WHERE id = $1))
		RETURNING id`,
		j.Run, j.Attempt, j.Kind, j.Key, j.Name, j.template, j.Origin, needs, j.Index, j.Total, string(j.Instance), labels,
		flag(j.ContinueOnError), j.MaxParallel, j.Status, j.Conclusion, j.Blame, j.Reason, j.Tries, outputs, j.Machine, j.Isolation, steps, annotations,
		nanos(j.Created), nanos(j.queued), nanos(j.Started), nanos(j.Finished), group, j.Summary, j.Uses, j.Environment, flag(j.Gated)).Scan(&j.ID)
	if err != nil {
		return fmt.Errorf("add job %q of run %d: %w", j.Key, j.Run, err)
	}
	return nil
}

// save writes what may change of j, whose row must still have the status from.
func (t *tx) save(j *job, from tgr.Status) error {
	outputs, err1 := encode(j.Outputs, len(j.Outputs))
	steps, err2 := encode(j.Steps, len(j.Steps))
	annotations, err3 := encode(j.Annotations, len(j.Annotations))
	if err := firstOf(err1, err2, err3); err != nil {
		return fmt.Errorf("encode job %d: %w", j.ID, err)
	}
	if j.Status.Done() && j.Group.Name != "" {
		if err := t.leave(j.Run, j.ID); err != nil {
			return err
		}
	}
	if j.Status.Done() {
		if err := t.logEnd(j); err != nil {
			return err
		}
	}
	return t.exec(fmt.Sprintf("save job %d", j.ID), `UPDATE jobs SET status = $1, conclusion = $2, blame = $3, reason = $4, tries = $5, outputs = $6,
		machine = $7, isolation = $8, steps = $9, annotations = $10, queued = $11, started = $12, finished = $13, owner = $14,
		token = $15, lease_until = $16, cancel = $17, cancel_reason = $18, summary = $19, not_before = $20, gated = $21, excused = $22 WHERE id = $23 AND status = $24`,
		j.Status, j.Conclusion, j.Blame, j.Reason, j.Tries, outputs, j.Machine, j.Isolation, steps, annotations, nanos(j.queued),
		nanos(j.Started), nanos(j.Finished), j.owner, j.token, nanos(j.until), flag(j.cancel), j.cancelReason, j.Summary, nanos(j.notBefore), flag(j.Gated), j.Excused, j.ID, from)
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
