package dispatch

import (
	"fmt"
	"time"

	"github.com/terraphim/tgr"
)

// How long a run and its jobs may take, whatever their workflow says.
//
// https://docs.github.com/en/actions/reference/limits
const (
	maxQueue    = 24 * time.Hour      // that a job waits for a machine
	maxApproval = 30 * 24 * time.Hour // that a job, or a run, waits for somebody's approval
	maxRun      = 35 * 24 * time.Hour // from the beginning of an attempt of a run to its end, with all that it waits for
)

// late is why a run has taken too long, or ""; then nothing of it goes on, not even what runs always.
func (g *graph) late(jobs []tgr.Job) string {
	var began time.Time
	for _, j := range jobs {
		if began.IsZero() || j.Created.Before(began) {
			began = j.Created
		}
	}
	switch age := g.only.since(began); {
	case age > maxRun:
		return fmt.Sprintf("the run was not completed within %s", span(maxRun))
	case age > maxApproval && g.run.Hold != "" && g.run.CancelReason == "":
		return fmt.Sprintf("nobody approved the run within %s", span(maxApproval))
	}
	return ""
}

// waited is how long a queued job has waited for a machine. While as many others of its matrix run as may at once, it waits
// for them.
func (g *graph) waited(row tgr.Job) time.Duration {
	if row.MaxParallel == 0 || row.MaxParallel >= row.Total {
		return g.only.since(row.Queued)
	}
	since, running := row.Queued, 0
	for _, other := range g.rows[row.Key] {
		if other.Status == tgr.InProgress {
			running++
		}
		if other.Finished.After(since) {
			since = other.Finished
		}
	}
	if running >= row.MaxParallel {
		return 0
	}
	return g.only.since(since)
}

// since is how long ago t was; 0 where that is not known.
func (l limits) since(t time.Time) time.Duration {
	if l.now == nil || t.IsZero() {
		return 0
	}
	return l.now().Sub(t)
}

// span is a time of whole hours or days in words.
func span(d time.Duration) string {
	if d > 24*time.Hour {
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return fmt.Sprintf("%d hours", d/time.Hour)
}
