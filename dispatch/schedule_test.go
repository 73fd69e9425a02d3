package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/workflow"
)

// compiled is what planning an event yields, with its log.
func compiled(t *testing.T, source Source, ev tgr.Event, now time.Time) (Planned, *capture, error) {
	t.Helper()
	d := New(Config{Source: source, Now: func() time.Time { return now }})
	out := &capture{}
	s := d.newSink(&Lease{}, out, slog.New(slog.DiscardHandler))
	p, err := d.compileAll(t.Context(), ev, s)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	return p, out, err
}

// onMain is an event of the latest commit of the default branch.
func onMain(name string) tgr.Event {
	return tgr.Event{Name: name, Ref: "refs/heads/main", Actor: "ada", ActorID: 3, Repo: tgr.Repo{ID: 7, FullName: "a/b", DefaultBranch: "main"},
		Payload: json.RawMessage(`{"repository": {"id": 7, "full_name": "a/b", "topics": ["x"]}}`)}
}

// workOn is a workflow that is started by what is given.
func workOn(on string) string {
	return "on: " + on + "\njobs: {a: {runs-on: x, steps: [{run: 'true'}]}}\n"
}

func TestLearnsSchedules(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	source := files{
		"ci.yml":      workOn("push"),
		"nightly.yml": workOn("{schedule: [{cron: '0 4 * * *'}, {cron: '0  4 * * *'}, {cron: '0 4 * * *', timezone: Europe/Berlin}]}"),
		"both.yml":    workOn("{push: , schedule: [{cron: '*/15 * * * *'}]}"),
		"broken.yml":  workOn("{schedule: [{cron: '0 4 * * *'}, {cron: '61 * * * *'}]}"),
		"never.yml":   workOn("{schedule: [{cron: '0 0 30 2 *'}]}"),
		"told.yml":    "# This is no schedule\n" + workOn("push"),
	}
	all := []string{"both.yml */15 * * * *  04T03:15", "nightly.yml 0 4 * * *  04T04:00", "nightly.yml 0 4 * * * Europe/Berlin 05T02:00"}
	skipped := onMain("push")
	skipped.Payload = json.RawMessage(`{"head_commit": {"message": "docs [skip ci]"}}`)
	topic, tag, deleted, old := onMain("push"), onMain("push"), onMain("push"), onMain("pull_request_target")
	topic.Ref, tag.Ref, deleted.Deleted, old.SHA = "refs/heads/topic", "refs/tags/main", true, strings.Repeat("a", 40)
	pushed := onMain("push")
	pushed.SHA = strings.Repeat("a", 40)
	for _, tt := range []struct {
		name  string
		ev    tgr.Event
		learn bool
	}{
		{"a push", pushed, true}, {"a push that starts nothing", skipped, true}, {"a schedule", onMain("schedule"), true}, {"an issue", onMain("issues"), true},
		{"a push of another branch", topic, false}, {"a push of a tag", tag, false}, {"a deleted branch", deleted, false},
		{"an event of an earlier commit", old, false},
	} {
		p, out, err := compiled(t, source, tt.ev, now)
		if err != nil {
			t.Fatal(err)
		}
		if (p.Awaited != nil) != tt.learn {
			t.Errorf("%s: it is known what is awaited: %v", tt.name, p.Awaited != nil)
		}
		if p.Awaited == nil {
			continue
		}
		var got []string
		for _, s := range p.Awaited.Schedules {
			got = append(got, fmt.Sprintf("%s %s %s %s", filepath.Base(s.File), s.Cron, s.Timezone, s.Next.Format("02T15:04")))
			if s.Actor != "ada" || s.ActorID != 3 {
				t.Errorf("%s: the schedule is by %q, %d", tt.name, s.Actor, s.ActorID)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(all, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if !out.has("never.yml: the schedule '0 0 30 2 *' is never due") {
			t.Errorf("%s: the log says nothing of a schedule that is never due: %v", tt.name, out.lines)
		}
	}
	p, _, err := compiled(t, source, pushed, now)
	if err != nil || !strings.Contains(string(p.Awaited.Repository), "topics") {
		t.Errorf("the repository is %s, %v; want what the payload says", p.Awaited.Repository, err)
	}
}

func TestSchedulesAreBounded(t *testing.T) {
	var lines []string
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("{cron: '%d %d * * *'}", i%60, i/60))
	}
	many := workOn("{schedule: [" + strings.Join(lines, ", ") + "]}")
	source := files{}
	for i := range 12 {
		source[fmt.Sprintf("%d.yml", i)] = many
	}
	p, out, err := compiled(t, source, onMain("push"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	per := map[string]int{}
	for _, s := range p.Awaited.Schedules {
		per[s.File]++
	}
	if len(p.Awaited.Schedules) != 1000 || len(per) != 10 {
		t.Errorf("%d schedules of %d files; want 1000 of 10", len(p.Awaited.Schedules), len(per))
	}
	if !out.has("are left out: a file has at most 100, and a repository 1000") {
		t.Errorf("the log does not say that some are left out: %v", out.lines)
	}
}

// A scheduled event starts the workflow whose time has come, and not another with the same line.
func TestScheduledEventStartsOneWorkflow(t *testing.T) {
	source := files{"a.yml": workOn("{schedule: [{cron: '0 4 * * *'}]}"), "b.yml": workOn("{schedule: [{cron: '0 4 * * *'}]}"),
		"c.yml": workOn("{schedule: [{cron: '0 5 * * *'}]}")}
	for _, tt := range []struct {
		file, cron string
		want       int
	}{{"a.yml", "0 4 * * *", 1}, {"c.yml", "0 4 * * *", 0}, {"gone.yml", "0 4 * * *", 0}} {
		s := tgr.Schedule{Repo: onMain("").Repo, File: ".github/workflows/" + tt.file, Cron: tt.cron, Actor: "ada"}
		d, err := scheduled(s, time.Now(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := compiled(t, source, d.Event, time.Now())
		if err != nil || len(p.Runs) != tt.want {
			t.Errorf("%s at '%s': %d runs, %v; want %d (%s)", tt.file, tt.cron, len(p.Runs), err, tt.want, p.Reason)
		}
		if tt.want == 1 && p.Runs[0].WorkflowFile != s.File {
			t.Errorf("%s was started in place of %s", p.Runs[0].WorkflowFile, s.File)
		}
	}
}

func TestDue(t *testing.T) {
	const layout = "02 15:04:05"
	for _, tt := range []struct{ cron, zone, set, now, at, next string }{
		{"0 * * * *", "", "04 04:00:00", "04 04:00:00", "04 04:00:00", "04 05:00:00"},
		{"0 * * * *", "", "04 04:00:00", "04 04:00:09", "04 04:00:00", "04 05:00:00"},
		{"* * * * *", "", "04 04:00:00", "04 04:00:00", "04 04:00:00", "04 04:05:00"},     // every five minutes at most
		{"0,2,9 * * * *", "", "04 04:00:00", "04 04:00:00", "04 04:00:00", "04 04:09:00"}, // likewise
		{"*/5 * * * *", "", "04 04:00:00", "04 04:00:00", "04 04:00:00", "04 04:05:00"},
		{"*/15 * * * *", "", "04 04:00:00", "04 04:50:00", "04 04:45:00", "04 05:00:00"}, // the latest of those that were missed
		{"0 4 * * *", "", "04 04:00:00", "04 05:00:00", "04 04:00:00", "05 04:00:00"},
		{"0 4 * * *", "", "04 04:00:00", "04 05:01:00", "", "05 04:00:00"}, // too late
		{"0 4 * * *", "", "04 04:00:00", "09 17:00:00", "", "10 04:00:00"},
		{"0 4 * * *", "Europe/Berlin", "04 02:00:00", "04 02:00:00", "04 02:00:00", "05 02:00:00"},
		{"*/5 * * * *", "", "04 04:00:00", "30 04:02:00", "30 04:00:00", "30 04:05:00"}, // of thousands one
	} {
		parse := func(s string) time.Time {
			at, err := time.Parse("2006-01 "+layout, "2026-05 "+s)
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		show := func(at time.Time) string {
			if at.IsZero() {
				return ""
			}
			return at.UTC().Format(layout)
		}
		at, next, err := due(tgr.Schedule{Cron: tt.cron, Timezone: tt.zone, Next: parse(tt.set)}, parse(tt.now))
		if err != nil || show(at) != tt.at || show(next) != tt.next {
			t.Errorf("'%s' %s, set for %s, at %s: %q and then %q, %v; want %q and then %q", tt.cron, tt.zone, tt.set, tt.now, show(at), show(next), err, tt.at, tt.next)
		}
	}
	if at, next, err := due(tgr.Schedule{Cron: "@daily"}, time.Now()); err == nil || !at.IsZero() || !next.IsZero() {
		t.Errorf("a line that cannot be read: %s, %s, %v", at, next, err)
	}
}

// clocked is a store in which schedules are known, in a bubble of synctest.
type clocked struct {
	t     *testing.T
	store *store.Store
	wakes int
}

// newClocked has the schedules learnt now.
func newClocked(t *testing.T, list ...workflow.Schedule) *clocked {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "tgr.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	var known []tgr.Schedule
	for i, w := range list {
		next, err := w.Next(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		known = append(known, tgr.Schedule{File: fmt.Sprintf(".github/workflows/%d.yml", i), Cron: w.Cron, Timezone: w.Timezone, Next: next, Actor: "ada"})
	}
	if _, _, err := s.Accept(t.Context(), tgr.Delivery{ID: "push", Event: onMain("push")}); err != nil {
		t.Fatal(err)
	}
	l, err := s.Claim(t.Context(), store.ClaimRequest{Owner: "x", Lease: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Planned(t.Context(), l.Job.ID, l.Token, store.Planned{Reason: "nothing", Awaited: &tgr.Awaited{Schedules: known}}); err != nil {
		t.Fatal(err)
	}
	return &clocked{t: t, store: s}
}

// runs has a clock run for a time.
func (c *clocked) runs(d time.Duration) {
	ctx, stop := context.WithCancel(c.t.Context())
	done := make(chan error)
	go func() {
		done <- Clock{Timetable: c.store, Wake: func() { c.wakes++ }, Log: slog.New(slog.DiscardHandler)}.Run(ctx)
	}()
	time.Sleep(d)
	stop()
	if err := <-done; err != nil {
		c.t.Error(err)
	}
}

// started lists what was started of a schedule, by the time at which it was.
func (c *clocked) started(cron string) []string {
	c.t.Helper()
	list, err := c.store.Deliveries(c.t.Context(), 1000)
	if err != nil {
		c.t.Fatal(err)
	}
	out := []string{}
	for _, d := range slices.Backward(list) {
		full, err := c.store.Delivery(c.t.Context(), d.ID)
		if err != nil {
			c.t.Fatal(err)
		}
		var p struct{ Schedule string }
		if err := json.Unmarshal(full.Event.Payload, &p); err != nil {
			c.t.Fatal(err)
		}
		if p.Schedule == cron {
			out = append(out, d.Received.UTC().Format("02T15:04:05"))
		}
	}
	return out
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(12*time.Hour + 30*time.Second) // it is the 1st of January 2000
		c := newClocked(t, workflow.Schedule{Cron: "0 4 * * *"}, workflow.Schedule{Cron: "30 */6 * * *", Timezone: "Asia/Kolkata"}, workflow.Schedule{Cron: "* * 3 * *"})
		c.runs(48 * time.Hour)
		want := func(cron string, times ...string) {
			t.Helper()
			if diff := cmp.Diff(append([]string{}, times...), c.started(cron)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", cron, diff)
			}
		}
		daily := []string{"02T04:00:00", "03T04:00:00"}
		want("0 4 * * *", daily...)
		want("30 */6 * * *", "01T13:00:00", "01T19:00:00", "02T01:00:00", "02T07:00:00", "02T13:00:00", "02T19:00:00", "03T01:00:00", "03T07:00:00")
		if n := len(c.started("* * 3 * *")); n != 12*12+1 {
			t.Errorf("started %d times in twelve hours; want every five minutes", n)
		}
		if all := 1 + 2 + 8 + 12*12; c.wakes != all {
			t.Errorf("dispatch was woken %d times for %d events", c.wakes, all)
		}

		// A server that starts again half an hour too late makes up for it, and one that is later does not.
		time.Sleep(16*time.Hour + 30*time.Minute)
		c.runs(time.Minute)
		daily = append(daily, "04T04:30:30")
		want("0 4 * * *", daily...)
		time.Sleep(50 * time.Hour)
		c.runs(time.Hour)
		want("0 4 * * *", daily...)
		time.Sleep(20 * time.Hour)
		c.runs(2 * time.Hour)
		want("0 4 * * *", append(daily, "07T04:00:00")...)
	})
}

// The night in which the clocks are changed is like any other.
func TestClockAcrossDST(t *testing.T) {
	for _, tt := range []struct {
		month time.Month
		day   int
		want  []string
	}{
		{time.March, 25, []string{"25T01:30:00", "26T01:00:00", "27T00:30:00"}},   // 02:30, 03:00, 02:30
		{time.October, 28, []string{"28T00:30:00", "29T00:30:00", "30T01:30:00"}}, // 02:30 each
	} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Until(time.Date(2000, tt.month, tt.day, 0, 0, 0, 0, time.UTC)))
			c := newClocked(t, workflow.Schedule{Cron: "30 2 * * *", Timezone: "Europe/Berlin"})
			c.runs(72 * time.Hour)
			if diff := cmp.Diff(tt.want, c.started("30 2 * * *")); diff != "" {
				t.Errorf("in %s (-want +got):\n%s", tt.month, diff)
			}
		})
	}
}

// Two clocks on one timetable start each time once.
func TestTwoClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClocked(t, workflow.Schedule{Cron: "*/5 * * * *"})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		for range 2 {
			go func() {
				done <- Clock{Timetable: c.store, Wake: func() {}, Log: slog.New(slog.DiscardHandler)}.Run(ctx)
			}()
		}
		time.Sleep(time.Hour + time.Second)
		stop()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if got := c.started("*/5 * * * *"); len(got) != 12 {
			t.Errorf("started %d times in an hour: %v", len(got), got)
		}
	})
}
