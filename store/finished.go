package store

import (
	"context"
	"fmt"

	"github.com/terraphim/tgr"
)

// Finished is a job with its place in the log of jobs that have ended.
type Finished struct {
	Seq int64 // grows with every job that ends, and never changes
	Job tgr.Job
}

// FinishedAfter lists the work jobs that ended after a place in the log (0: its beginning), in the order in which they ended,
// which is the same for ever.
func (s *Store) FinishedAfter(ctx context.Context, after int64, limit int) ([]Finished, error) {
	rows, err := s.r.QueryContext(ctx, "SELECT f.seq, "+jobColumns+" FROM finished f JOIN jobs ON jobs.id = f.job_id WHERE f.seq > $1 ORDER BY f.seq LIMIT $2", after, page(limit))
	if err != nil {
		return nil, s.dialect.fault("finished", err)
	}
	defer rows.Close()
	var out []Finished
	for rows.Next() {
		var f Finished
		j, err := scanJob(func(into ...any) error { return rows.Scan(append([]any{&f.Seq}, into...)...) })
		if err != nil {
			return nil, s.dialect.fault("finished", err)
		}
		f.Job = j.Job
		out = append(out, f)
	}
	return out, s.dialect.fault("finished", rows.Err())
}

// logEnd adds a job that has ended to the log.
func (t *tx) logEnd(j *job) error {
	if j.Kind != tgr.WorkJob {
		return nil
	}
	if _, err := t.Exec("INSERT INTO finished (job_id) VALUES ($1) ON CONFLICT (job_id) DO NOTHING", j.ID); err != nil {
		return fmt.Errorf("log the end of job %d: %w", j.ID, err)
	}
	return nil
}
