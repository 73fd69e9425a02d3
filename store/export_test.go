package store

import (
	"context"

	"github.com/terraphim/tgr"
)

// Next finds the job to claim, and leaves it.
func (s *Store) Next(ctx context.Context, kinds ...tgr.JobKind) (tgr.JobID, error) {
	return next(ctx, s.r, kinds, s.cfg.Now())
}

// ExplainClaim is how the database would look for the job to claim.
func (s *Store) ExplainClaim(ctx context.Context, kinds ...tgr.JobKind) ([]string, error) {
	query, args := nextQuery(kinds, s.cfg.Now())
	rows, err := s.r.QueryContext(ctx, "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var id, parent, unused int
		var line string
		if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
			return nil, err
		}
		out = append(out, line)
	}
	return out, rows.Err()
}
