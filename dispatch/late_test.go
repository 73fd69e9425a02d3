package dispatch

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

func TestLate(t *testing.T) {
	const src = `
on: push
jobs:
  m: {strategy: {matrix: {n: [1, 2, 3]}, max-parallel: 1, fail-fast: false}, runs-on: x, steps: [{run: make}]}
  gate: {environment: prod, runs-on: x, steps: [{run: make}]}
  last: {needs: m, if: always(), runs-on: x, steps: [{run: make}]}
`
	const day = 24 * time.Hour
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	p := compile(t, src)
	tests := []struct {
		name   string
		run    tgr.Run
		age    time.Duration // of the attempt
		rows   []string
		queued map[string]time.Duration // how long ago
		ended  map[string]time.Duration // how long ago
		limit  int                      // max-parallel of m
		want   []string
		cancel string
	}{
		{name: "young", rows: []string{"m@0:1", "gate", "last"}, age: day, queued: map[string]time.Duration{"m 0": day}, want: []string{"queue gate"}},
		{name: "queued for too long", rows: []string{"m@0:1", "gate=success", "last"}, age: 2 * day, queued: map[string]time.Duration{"m 0": day + 1},
			want: []string{"end m 0 (ours): waited 24 hours for a machine, and none became free"}},
		{name: "nobody knows since when", rows: []string{"m@0:1", "gate=success", "last"}, age: 2 * day},
		{name: "what is left of it runs", rows: []string{"m@0:1=cancelled", "gate=success", "last"}, age: 2 * day, want: []string{"queue last"}},
		{name: "not before a time that is to come", rows: []string{"m@0:1", "gate=success", "last"}, age: 2 * day, queued: map[string]time.Duration{"m 0": -day}},
		{name: "it runs", rows: []string{"m@0:1~", "gate=success", "last"}, age: 6 * day, queued: map[string]time.Duration{"m 0": 6 * day}},
		{name: "others run in its place", rows: []string{"m@0:3=success", "m@1:3~", "m@2:3", "gate=success", "last"}, age: 6 * day, limit: 1,
			queued: map[string]time.Duration{"m 0": 6 * day, "m 1": 6 * day, "m 2": 6 * day}, ended: map[string]time.Duration{"m 0": 3 * day}},
		{name: "its turn came just now", rows: []string{"m@0:3=success", "m@1:3=success", "m@2:3", "gate=success", "last"}, age: 6 * day, limit: 1,
			queued: map[string]time.Duration{"m 2": 6 * day}, ended: map[string]time.Duration{"m 0": 3 * day, "m 1": time.Hour}},
		{name: "its turn came long ago", rows: []string{"m@0:3=success", "m@1:3=success", "m@2:3", "gate=success", "last"}, age: 6 * day, limit: 1,
			queued: map[string]time.Duration{"m 2": 6 * day}, ended: map[string]time.Duration{"m 0": 3 * day, "m 1": 2 * day},
			want: []string{"end m 2 (ours): waited 24 hours for a machine, and none became free"}},
		{name: "as many may run as there are", rows: []string{"m@0:3=success", "m@1:3~", "m@2:3", "gate=success", "last"}, age: 6 * day, limit: 3,
			queued: map[string]time.Duration{"m 2": 6 * day}, ended: map[string]time.Duration{"m 0": time.Hour},
			want: []string{"end m 2 (ours): waited 24 hours for a machine, and none became free"}},
		{name: "cancelled before", run: tgr.Run{CancelReason: "by ada"}, rows: []string{"m@0:1", "gate=success", "last"}, age: 2 * day,
			queued: map[string]time.Duration{"m 0": 2 * day}, want: []string{"cancel m 0: by ada"}},
		{name: "on hold", run: tgr.Run{Hold: "a fork"}, rows: []string{"m", "gate", "last"}, age: 30 * day},
		{name: "on hold for too long", run: tgr.Run{Hold: "a fork"}, rows: []string{"m", "gate", "last"}, age: 30*day + 1,
			want:   []string{"cancel m: nobody approved the run within 30 days", "cancel gate: nobody approved the run within 30 days", "cancel last: nobody approved the run within 30 days"},
			cancel: "nobody approved the run within 30 days"},
		{name: "35 days", rows: []string{"m@0:1~", "gate=success", "last"}, age: 35 * day},
		{name: "longer, with what always runs", rows: []string{"m@0:1~", "gate=success", "last"}, age: 35*day + 1,
			want:   []string{"cancel m 0: the run was not completed within 35 days", "cancel last: the run was not completed within 35 days"},
			cancel: "the run was not completed within 35 days"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			jobs := rows(t, p, tt.rows...)
			for i := range jobs {
				j := &jobs[i]
				j.Created = ago(tt.age)
				if j.Key == "m" {
					j.MaxParallel = tt.limit
				}
				if d, ok := tt.queued[j.Name]; ok {
					j.Queued = ago(d)
				}
				if d, ok := tt.ended[j.Name]; ok {
					j.Finished = ago(d)
				}
			}
			c := next(p, tt.run, jobs, &workflow.Scope{}, limits{now: func() time.Time { return now }})
			if diff := cmp.Diff(tt.want, brief(c, jobs)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if c.CancelRun != tt.cancel {
				t.Errorf("the run is to be cancelled as %q, want %q", c.CancelRun, tt.cancel)
			}
		})
	}
}

// A job that waits at its gate for an approval does so for 30 days.
func TestLateApproval(t *testing.T) {
	p := compile(t, gated)
	now := time.Unix(1e9, 0)
	rules := func(string) (tgr.Environment, error) { return tgr.Environment{Approval: true}, nil }
	for waited, want := range map[time.Duration]string{
		30 * 24 * time.Hour:   "",
		30*24*time.Hour + 1:   "failure user: nobody approved the environment prod within 30 days",
		31 * 24 * time.Hour:   "failure user: nobody approved the environment prod within 30 days",
		-31 * 24 * time.Hour:  "",
		365 * 24 * time.Hour:  "failure user: nobody approved the environment prod within 30 days",
		24 * time.Hour:        "",
		29*24*time.Hour + 1e9: "",
	} {
		row := tgr.Job{ID: 1, Kind: tgr.WorkJob, Key: "deploy", Status: tgr.Pending, Gated: true, Environment: "prod", Instance: []byte(`{}`), Queued: now.Add(-waited)}
		c := next(p, tgr.Run{}, []tgr.Job{row}, &workflow.Scope{}, limits{now: func() time.Time { return now }, environment: rules})
		got := ""
		if r, ok := c.End[1]; ok {
			got = string(r.Conclusion) + " " + string(r.Blame) + ": " + r.Reason
		}
		if got != want {
			t.Errorf("after %s: %q, want %q", waited, got, want)
		}
	}
}

// A run that takes too long ends with the calls that it made.
func TestLateCall(t *testing.T) {
	g := play(t, calling(t, "with: {n: 1}"))
	g.settle()
	began := time.Unix(1e9, 0)
	for i := range g.jobs {
		g.jobs[i].Created = began
	}
	g.now = began.Add(maxRun + 1)
	g.wants("after: cancelled", "call: cancelled", "call / a: cancelled", "call / b: cancelled", "call / c: cancelled")
}

// No job takes longer than the server allows, however much its workflow gives it.
func TestMostOfAJob(t *testing.T) {
	h := open(t, files{"ci.yml": `
on: push
jobs:
  more: {runs-on: x, timeout-minutes: 999999, steps: [{run: "sleep 30"}]}
  none: {runs-on: x, steps: [{run: "sleep 30"}]}
  less: {runs-on: x, timeout-minutes: 0.01, steps: [{run: "sleep 30"}]}
  step: {runs-on: x, timeout-minutes: 0.02, steps: [{timeout-minutes: 999999, run: "sleep 30"}]}
`}, nil, func(c *Config) { c.Most = 1200 * time.Millisecond })
	began := time.Now()
	runs, jobs := h.push(nil)
	minutes := map[string]string{"more": "0.02", "none": "0.02", "less": "0.01", "step": "0.02"}
	for _, j := range jobs[runs[0].ID] {
		if j.Kind == tgr.WorkJob && (j.Conclusion != tgr.TimedOut || !strings.Contains(j.Reason, "execution time of "+minutes[j.Name]+" minutes")) {
			t.Errorf("%s: %s, %s", j.Name, j.Conclusion, j.Reason)
		}
	}
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("it took %s", took)
	}
	for _, line := range []string{"##[warning]timeout-minutes of this job is 50400, and this server allows no more than 0.02",
		"Time-out: 0.0 minutes, the most that this server allows, as the workflow states none"} {
		if !h.log.has(line) {
			t.Errorf("the log has no line %q:\n%s", line, strings.Join(h.log.lines, "\n"))
		}
	}
	for _, line := range []string{"timeout-minutes of this job is 0.0", "learnt"} {
		if h.log.has(line) {
			t.Errorf("the log has a line %q", line)
		}
	}
}
