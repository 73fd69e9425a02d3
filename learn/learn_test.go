package learn

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/terraphim/tgr"
)

// runLog is a log of runs in memory.
type runLog []Record

// Finished implements Source.
func (l runLog) Finished(_ context.Context, after int64, limit int) ([]Record, error) {
	var out []Record
	for _, r := range l {
		if r.Seq > after && len(out) < limit {
			out = append(out, r)
		}
	}
	return out, nil
}

type fataler interface {
	Helper()
	Fatal(...any)
}

func openLearner(t fataler, path string, log Source) *Learner {
	t.Helper()
	l, err := Open(context.Background(), Config{Path: path, Source: log})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dump(t fataler, l *Learner) string {
	t.Helper()
	var b bytes.Buffer
	if err := l.Dump(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func catchUp(t fataler, l *Learner) int {
	t.Helper()
	n, err := l.CatchUp(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A rebuild gives the same state, byte for byte, and says how much was lost.
func TestRebuild(t *testing.T) {
	records := NewTrace(TraceConfig{Seed: 4, Commits: 40, Jobs: 5, Lines: 6, Forked: 0.2}).Records
	l := openLearner(t, filepath.Join(t.TempDir(), "learn.db"), runLog(records))
	defer l.Close()
	if n := catchUp(t, l); n != len(records) {
		t.Fatalf("learnt from %d records, want %d", n, len(records))
	}
	before := dump(t, l)
	r, err := l.Rebuild(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !r.Same() || r.Records != len(records) || r.Lost != 0 || r.Before == "" {
		t.Errorf("report is %+v", r)
	}
	if diff := cmp.Diff(before, dump(t, l)); diff != "" {
		t.Errorf("the state differs:\n%s", diff)
	}
	l.cfg.Source = runLog(records[1:])
	if r, err = l.Rebuild(context.Background()); err != nil || r.Same() {
		t.Errorf("with another log: %+v, %v: it should not be the same", r, err)
	}
}

// However the log comes, in whatever pieces, and however often the learner is closed between them, what is learnt is the same.
func TestReplayIsIncremental(t *testing.T) {
	records := NewTrace(TraceConfig{Seed: 5, Commits: 12, Jobs: 3, Lines: 4, Forked: 0.3}).Records
	dir := t.TempDir()
	whole := openLearner(t, filepath.Join(dir, "whole.db"), runLog(records))
	defer whole.Close()
	catchUp(t, whole)
	want := dump(t, whole)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(dir, "parts", time.Duration(n).String()+".db")
		for at := 0; at < len(records); {
			at = min(len(records), at+rapid.IntRange(1, 40).Draw(t, "records"))
			l := openLearner(t, path, runLog(records[:at]))
			catchUp(t, l)
			if rapid.Bool().Draw(t, "again") {
				catchUp(t, l)
			}
			if at == len(records) {
				if diff := cmp.Diff(want, dump(t, l)); diff != "" {
					t.Fatal("the state differs:\n" + diff)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The same holds where things are forgotten for want of room: the order of what goes is settled.
func TestReplayWithLittleRoom(t *testing.T) {
	records := NewTrace(TraceConfig{Seed: 6, Commits: 30, Jobs: 4, Lines: 4}).Records
	small := func() *space {
		sp := newSpace("", false)
		sp.limit = func(n int) int { return n / 200 }
		sp.drain.limit = 20
		return sp
	}
	one := small()
	for i, r := range records {
		one.fold(r)
		if len(one.units) > 20 || len(one.edges) > 40 || len(one.drain.byID) > 20 || len(one.clusters) > 2 || len(one.commands) > 5 || len(one.open) > 2 {
			t.Fatalf("after %d records: %d units, %d edges, %d templates, %d clusters, %d commands, %d open", i, len(one.units), len(one.edges),
				len(one.drain.byID), len(one.clusters), len(one.commands), len(one.open))
		}
	}
	two := small()
	for i, r := range records {
		two.fold(r)
		if i%7 == 0 {
			two = reloaded(t, two, small())
		}
	}
	if diff := cmp.Diff(rowsOf(t, one), rowsOf(t, two)); diff != "" {
		t.Errorf("a space that was stored and loaded differs:\n%s", diff)
	}
}

// A log without the lines of a job is learnt from all the same, and counted.
func TestLostLogs(t *testing.T) {
	r := NewTrace(TraceConfig{Seed: 1, Commits: 1, Jobs: 1}).Records[0]
	r.Log, r.Lost = nil, true
	l := openLearner(t, filepath.Join(t.TempDir(), "learn.db"), runLog{r})
	defer l.Close()
	catchUp(t, l)
	in, err := l.Insights(context.Background(), Question{Repo: "octo/app"})
	if err != nil || in.Lost != 1 || len(in.NotMeasured) != 3 {
		t.Errorf("insights are %+v, %v: want one lost log, and that it is said", in, err)
	}
}

// Neither our faults nor cancelled and skipped jobs say anything of the workflow.
func TestWhatTeachesNothing(t *testing.T) {
	base := NewTrace(TraceConfig{Seed: 1, Commits: 1, Jobs: 1}).Records[0]
	for name, change := range map[string]func(*Record){
		"ours":      func(r *Record) { r.Job.Conclusion, r.Job.Blame = tgr.Failure, tgr.BlameOurs },
		"cancelled": func(r *Record) { r.Job.Conclusion = tgr.Cancelled },
		"skipped":   func(r *Record) { r.Job.Conclusion = tgr.Skipped },
		"plan":      func(r *Record) { r.Job.Kind = tgr.PlanJob },
		"carried":   func(r *Record) { r.Job.Origin = 3 },
	} {
		t.Run(name, func(t *testing.T) {
			r := base
			change(&r)
			sp := newSpace("", false)
			sp.fold(r)
			if len(sp.units)+len(sp.commands)+len(sp.edges)+sp.Head.Jobs != 0 {
				t.Errorf("%d units, %d commands, %d edges, %d jobs", len(sp.units), len(sp.commands), len(sp.edges), sp.Head.Jobs)
			}
		})
	}
}

// A record on which the fold fails costs that record, and a log that goes back is refused.
func TestFaults(t *testing.T) {
	records := NewTrace(TraceConfig{Seed: 1, Commits: 3, Jobs: 1}).Records
	l := openLearner(t, filepath.Join(t.TempDir(), "learn.db"), runLog(records))
	defer l.Close()
	catchUp(t, l)
	l.safely(nil, records[0]) // panics inside
	if err := l.learn(context.Background(), records[0]); tgr.CodeOf(err) != tgr.Internal {
		t.Errorf("an old record: %v", err)
	}
	for range 3 {
		l.Finished(1, 1) // never blocks
	}
}

// A state that another version wrote is learnt again.
func TestOtherVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "learn.db")
	records := runLog(NewTrace(TraceConfig{Seed: 1, Commits: 5, Jobs: 2}).Records)
	l := openLearner(t, path, records)
	catchUp(t, l)
	want := dump(t, l)
	if _, err := l.db.Exec("PRAGMA user_version = 99; UPDATE state SET data = '[]'"); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = openLearner(t, path, records)
	defer l.Close()
	if n := catchUp(t, l); n != len(records) {
		t.Errorf("learnt from %d records, want all %d again", n, len(records))
	}
	if diff := cmp.Diff(want, dump(t, l)); diff != "" {
		t.Error(diff)
	}
}

// Run learns when it is told to, and ends with its context.
func TestRun(t *testing.T) {
	records := runLog(NewTrace(TraceConfig{Seed: 1, Commits: 4, Jobs: 2}).Records)
	l := openLearner(t, filepath.Join(t.TempDir(), "learn.db"), records)
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	deadline := time.Now().Add(30 * time.Second)
	for {
		if in, err := l.Insights(ctx, Question{Repo: "octo/app"}); err == nil && in.Jobs == len(records) {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("not learnt: %+v, %v", in, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
