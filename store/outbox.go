package store

import (
	"context"
	"time"
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
// earlier due time, unless it was put off by ReportRetry: then the later one, so that a back-off holds.
func (s *Store) Report(ctx context.Context, key string, due time.Time, body []byte) error {
	panic("body follows")
}

// NextReports lists up to limit reports that are due at now, the most overdue first. It takes no lease: one
// sender at a time.
func (s *Store) NextReports(ctx context.Context, now time.Time, limit int) ([]Report, error) {
	panic("body follows")
}

// ReportDone records that version of key was delivered, under remoteID ("": as before). A later version stays due.
func (s *Store) ReportDone(ctx context.Context, key string, version int64, remoteID string) error {
	panic("body follows")
}

// ReportRetry puts key off until at, because sending version failed for reason.
func (s *Store) ReportRetry(ctx context.Context, key string, version int64, at time.Time, reason string) error {
	panic("body follows")
}

// ReportDrop gives up version of key for reason; a later version stays due.
func (s *Store) ReportDrop(ctx context.Context, key string, version int64, reason string) error {
	panic("body follows")
}

// ReportsWaiting counts the reports that are not delivered, and returns when the oldest of them became due (zero
// if there is none).
func (s *Store) ReportsWaiting(ctx context.Context) (n int, oldest time.Time, err error) {
	panic("body follows")
}
