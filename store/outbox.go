package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/terraphim/tgr"
)

// Outgoing is a report to be enqueued with a change of state. It is due at once.
type Outgoing struct {
	Key  string // what is reported on: the latest body of a key wins
	Body []byte
}

// Report is a report that is due.
type Report struct {
	Key      string
	Version  int64     // of Body, counting from 1
	Body     []byte    //
	RemoteID string    // what GitHub called it when it was last sent (a check run's or comment's id); "": never
	Due      time.Time //
	Tries    int       // failed attempts since the last success
	Reason   string    // of the last failure
	Created  time.Time // when its key was first reported
}

// Report enqueues body under key. Where a report of that key waits already, body takes its place and keeps the
// earlier due time, unless it was put off by ReportRetry: then the later one, so that a back-off holds. A body that
// is the last one of its key again changes nothing.
func (s *Store) Report(ctx context.Context, key string, due time.Time, body []byte) error {
	return s.write(ctx, "report", func(t *tx) error { return t.report(key, due, body) })
}

func (t *tx) report(key string, due time.Time, body []byte) error {
	if key == "" {
		return tgr.Errorf("store.report", tgr.Invalid, "a report needs a key")
	}
	if body == nil {
		body = []byte{}
	}
	// Of a run of hundreds of jobs most have not changed: what is known to be the last of its key costs nothing.
	sum := sha256.Sum256(body)
	if t.bodies.has(key, sum) || t.bodies[key] == nil && t.s.bodies.has(key, sum) {
		return nil
	}
	t.bodies[key] = &sum
	_, err := t.Exec(`INSERT INTO reports (key, version, due, created, body) VALUES ($1, 1, $2, $3, $4)
		ON CONFLICT (key) DO UPDATE SET version = reports.version + 1, body = excluded.body, due = CASE
			WHEN reports.version = reports.sent THEN excluded.due
			WHEN (reports.due < excluded.due) = (reports.tries = 0) THEN reports.due
			ELSE excluded.due END
		WHERE reports.body <> excluded.body`, key, nanos(due), nanos(t.now), body)
	if err != nil {
		return fmt.Errorf("enqueue report %q: %w", key, err)
	}
	return nil
}

// enqueue adds reports that are due at once.
func (t *tx) enqueue(reports []Outgoing) error {
	for _, r := range reports {
		if err := t.report(r.Key, t.now, r.Body); err != nil {
			return err
		}
	}
	return nil
}

// bodies are the hashes of the last bodies of keys.
type bodies map[string]*[sha256.Size]byte

// keptBodies is how many are remembered.
const keptBodies = 20_000

func (b bodies) has(key string, sum [sha256.Size]byte) bool {
	have := b[key]
	return have != nil && *have == sum
}

// NextReports lists up to limit reports that are due at now, the most overdue first. It takes no lease: one
// sender at a time.
func (s *Store) NextReports(ctx context.Context, now time.Time, limit int) ([]Report, error) {
	list, err := s.nextReports(ctx, now, limit)
	return list, s.dialect.fault("reports", err)
}

func (s *Store) nextReports(ctx context.Context, now time.Time, limit int) ([]Report, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT key, version, body, remote_id, due, tries, reason, created FROM reports
		WHERE version > sent AND due <= $1 ORDER BY due, key LIMIT $2`, nanos(now), page(limit))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []Report
	for rows.Next() {
		var r Report
		var due, created int64
		if err := rows.Scan(&r.Key, &r.Version, &r.Body, &r.RemoteID, &due, &r.Tries, &r.Reason, &created); err != nil {
			return nil, err
		}
		r.Due, r.Created = moment(due), moment(created)
		list = append(list, r)
	}
	return list, rows.Err()
}

// ReportDone records that version of key was delivered, under remoteID ("": as before). A later version stays due.
func (s *Store) ReportDone(ctx context.Context, key string, version int64, remoteID string) error {
	return s.sent(ctx, key, `UPDATE reports SET remote_id = CASE WHEN $3 = '' THEN remote_id ELSE $3 END, reason = '', tries = 0,
		sent = CASE WHEN sent < $2 THEN $2 ELSE sent END WHERE key = $1 AND version >= $2`, version, remoteID)
}

// sent runs an update of the report key, whose version was sent.
func (s *Store) sent(ctx context.Context, key, query string, version int64, args ...any) error {
	return s.write(ctx, "report", func(t *tx) error {
		res, err := t.Exec(query, append([]any{key, version}, args...)...)
		if err != nil {
			return fmt.Errorf("report %q: %w", key, err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 1 {
			return err
		}
		return tgr.Errorf("store.report", tgr.NotFound, "there is no report %q of version %d", key, version)
	})
}

// ReportRetry puts key off until at, because sending version failed for reason.
func (s *Store) ReportRetry(ctx context.Context, key string, version int64, at time.Time, reason string) error {
	return s.sent(ctx, key, "UPDATE reports SET tries = tries + 1, due = $3, reason = $4 WHERE key = $1 AND version >= $2", version, nanos(at), reason)
}

// ReportDefer puts key off until at because another report has failed: it counts as one failure at most.
func (s *Store) ReportDefer(ctx context.Context, key string, version int64, at time.Time) error {
	return s.sent(ctx, key, "UPDATE reports SET due = $3, tries = CASE WHEN tries = 0 THEN 1 ELSE tries END WHERE key = $1 AND version >= $2", version, nanos(at))
}

// ReportDrop gives up version of key for reason; a later version stays due.
func (s *Store) ReportDrop(ctx context.Context, key string, version int64, reason string) error {
	return s.sent(ctx, key, `UPDATE reports SET tries = 0, reason = $3,
		sent = CASE WHEN sent < $2 THEN $2 ELSE sent END WHERE key = $1 AND version >= $2`, version, reason)
}

// RemoteID is the id under which the report key was delivered; "" where it has not been.
func (s *Store) RemoteID(ctx context.Context, key string) (string, error) {
	var id string
	err := s.r.QueryRowContext(ctx, "SELECT remote_id FROM reports WHERE key = $1", key).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return id, s.dialect.fault("reports", err)
}

// ReportsWaiting counts the reports that are not delivered, and returns when the oldest of them became due (zero
// if there is none).
func (s *Store) ReportsWaiting(ctx context.Context) (n int, oldest time.Time, err error) {
	var due int64
	err = s.r.QueryRowContext(ctx, "SELECT COUNT(*), COALESCE(MIN(due), 0) FROM reports WHERE version > sent").Scan(&n, &due)
	return n, moment(due), s.dialect.fault("reports", err)
}
