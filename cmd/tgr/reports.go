package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/joblog"
	"github.com/terraphim/tgr/store"
)

// reports brings what GitHub is to show from the store to GitHub.
type reports struct {
	client *github.Client
	pump   *github.Pump
	wakeup chan struct{}
	url    string
	logs   *joblog.Store // set by connect, before anything is reported
	why    func(tgr.Job) string
	hint   func(tgr.Run, []tgr.Job) string // what was learnt of a run like this; nil: nothing
	redact func(string) string             // for lines of logs: what looks like a secret does not go to GitHub

	mu    sync.Mutex
	lines map[tgr.JobID][]string // why jobs failed, so that a log is read once
}

const keptLines = 256 // jobs whose lines are kept

func newReports(c *config, log *slog.Logger, url string) (*reports, error) {
	cc := github.ClientConfig{BaseURL: c.get("github-api-url"), Token: c.get("github-token"), Log: log}
	if id := c.get("github-app-id"); id != "" {
		n, err := c.number("github-app-id", 1, 1<<62)
		if err != nil {
			return nil, err
		}
		cc.AppID = int64(n)
		if cc.AppKey, err = os.ReadFile(c.get("github-app-key-file")); err != nil {
			return nil, usagef("github-app-key-file (from %s): %v", c.origin["github-app-key-file"], err)
		}
	}
	client, err := github.NewClient(cc)
	if err != nil {
		return nil, usageError{err}
	}
	if !client.CanReport() {
		log.Warn("there are no credentials for GitHub, so nothing is reported to it: set GITHUB_TOKEN, or GITHUB_APP_ID and GITHUB_APP_KEY_FILE")
	}
	return &reports{client: client, url: strings.TrimSuffix(url, "/"), wakeup: make(chan struct{}, 1), lines: map[tgr.JobID][]string{}}, nil
}

// connect tells where reports wait and where the logs are.
func (r *reports) connect(s *store.Store, logs *joblog.Store, log *slog.Logger) {
	r.logs = logs
	r.pump = github.NewPump(github.PumpConfig{
		Outbox: outbox{s}, Deliver: github.NewReporter(r.client, log).Deliver, Wake: r.wakeup, Log: log,
	})
}

// auth is the token for a repository, for git.
func (r *reports) auth(ctx context.Context, repo string) (string, error) {
	return r.client.RepoToken(ctx, repo)
}

// of makes the reports of a run as it is now. Without credentials there are none: they would wait for ever.
func (r *reports) of(run tgr.Run, jobs []tgr.Job) []store.Outgoing {
	if !r.client.CanReport() {
		return nil
	}
	var out []store.Outgoing
	for _, o := range github.Reports(run, jobs, github.ReportOptions{URL: r.link, Lines: r.whyFailed, Why: r.why, Hint: r.hint}) {
		out = append(out, store.Outgoing{Key: o.Key, Body: o.Body})
	}
	r.wake()
	return out
}

func (r *reports) link(run tgr.RunID, job tgr.JobID) string {
	if job != 0 {
		return fmt.Sprintf("%s/jobs/%d", r.url, job)
	}
	return fmt.Sprintf("%s/runs/%d", r.url, run)
}

// whyFailed is the first error of a failed job's log with what came before it.
func (r *reports) whyFailed(j tgr.Job) []string {
	const tail, before, most = 400, 5, 10
	r.mu.Lock()
	defer r.mu.Unlock()
	if lines, ok := r.lines[j.ID]; ok {
		return lines
	}
	all, err := r.logs.Tail(context.Background(), j.ID, tail)
	if err != nil {
		return nil // a report without lines is better than none; a job may also fail without a log
	}
	var lines []string
	for i, l := range all {
		if !strings.HasPrefix(l.Text, "##[error]") {
			continue
		}
		for _, l := range all[max(0, i-before):min(len(all), i+most-before)] {
			if text, ok := readable(l.Text); ok && l.Step == all[i].Step {
				lines = append(lines, r.redact(text))
			}
		}
		break
	}
	if len(r.lines) >= keptLines {
		clear(r.lines)
	}
	r.lines[j.ID] = lines
	return lines
}

// wake has the pump look at the outbox.
func (r *reports) wake() {
	select {
	case r.wakeup <- struct{}{}:
	default:
	}
}

// run delivers until ctx ends, and then what waits, for a moment: a job that has just ended is the last one's news.
func (r *reports) run(ctx context.Context) error {
	if err := r.pump.Run(ctx); err != nil {
		return err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_, err := r.pump.Once(last)
	return err
}

// outbox lets the pump read the store.
type outbox struct{ *store.Store }

// NextReports implements github.Outbox.
func (o outbox) NextReports(ctx context.Context, now time.Time, limit int) ([]github.Report, error) {
	got, err := o.Store.NextReports(ctx, now, limit)
	out := make([]github.Report, 0, len(got))
	for _, r := range got {
		out = append(out, github.Report{Key: r.Key, Version: r.Version, Body: r.Body, RemoteID: r.RemoteID, Tries: r.Tries})
	}
	return out, err
}

var _ github.Outbox = outbox{}
