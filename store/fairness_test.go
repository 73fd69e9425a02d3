package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// plannedIn is planned for another repository.
func (e *env) plannedIn(repo int64, id string, jobs ...tgr.Job) tgr.RunID {
	e.t.Helper()
	d := delivery(id)
	d.Event.Repo = tgr.Repo{ID: repo, FullName: fmt.Sprint("ada/", repo)}
	_, _, err := e.Accept(e.ctx, d)
	e.must(err)
	l := e.claim(tgr.PlanJob)
	runs, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{{WorkflowFile: "ci.yml", Plan: []byte(`{}`), Jobs: jobs}}})
	e.must(err)
	return runs[0]
}

// A repository that has queued a thousand jobs does not hold up another one, which has queued one after them.
func TestClaimIsFair(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		many := e.plannedIn(1, "many", work("m"))
		e.expand(many, "m", 1000, 0)
		e.clock.add(time.Hour)
		one := e.plannedIn(2, "one", work("o"))
		e.expand(one, "o", 1, 0)
		var got []string
		var running []*store.Lease
		for range 6 { // two workers, the first of whose jobs ends first
			if len(running) == 2 {
				e.finish(running[0], tgr.Success)
				running = running[1:]
			}
			running = append(running, e.claim(tgr.WorkJob))
			got = append(got, running[len(running)-1].Job.Name)
		}
		if want := []string{"m (0)", "o (0)", "m (1)", "m (2)", "m (3)", "m (4)"}; !slices.Equal(got, want) {
			t.Errorf("claimed %q, want %q", got, want)
		}
	})
}

// Who has had fewer for some time does not have more afterwards: it is only what runs that counts.
func TestClaimTakesTurns(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		for repo := range int64(3) {
			run := e.plannedIn(repo+1, fmt.Sprint("of ", repo+1), work("j"))
			e.expand(run, "j", 4, 0)
			e.clock.add(time.Minute)
		}
		var got []int64
		for range 12 {
			got = append(got, e.claim(tgr.WorkJob).Run.Event.Repo.ID)
		}
		if want := []int64{1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3}; !slices.Equal(got, want) {
			t.Errorf("the repositories' turns were %v, want %v", got, want)
		}
		e.nothing()
	})
}

// Events are planned in turns, too; jobs that run do not count there, nor do those that a repository cannot begin.
func TestClaimCountsItsKind(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		run := e.plannedIn(1, "first", work("m"))
		e.expand(run, "m", 3, 1)
		e.claim(tgr.WorkJob)
		for i, repo := range []int64{1, 1, 1, 2} {
			d := delivery(fmt.Sprint("event ", i))
			d.Event.Repo.ID = repo
			_, _, err := e.Accept(e.ctx, d)
			e.must(err)
			e.clock.add(time.Second)
		}
		var got []int64
		for range 4 {
			got = append(got, e.claim(tgr.PlanJob).Run.Event.Repo.ID)
		}
		if want := []int64{1, 2, 1, 1}; !slices.Equal(got, want) {
			t.Errorf("planned for %v, want %v", got, want)
		}
		e.nothing() // max-parallel holds up the others
	})
}

// How many wait makes no difference to a claim: every table is searched by an index.
func TestClaimUsesIndexes(t *testing.T) {
	each(t, func(t *testing.T, e *env) {
		if e.where.URL != "" {
			t.Skip("PostgreSQL reads a table that is empty; BenchmarkNext fills it")
		}
		for _, line := range must(e.ExplainClaim(e.ctx, tgr.PlanJob, tgr.WorkJob)) {
			// What it goes through is the repositories that have queued jobs, and nothing else.
			if table, ok := strings.CutPrefix(line, "SCAN "); ok && table != "q" && table != "h" && table != "CONSTANT ROW" {
				t.Errorf("the claim reads a whole table: %s", line)
			}
		}
	})
}

// crowd has n jobs of a number of repositories queued, in runs of at most 5000; of each run as many may run at once as
// parallel says (0: all), and one does.
func crowd(tb testing.TB, s *store.Store, n, repos, parallel int) {
	tb.Helper()
	ctx := context.Background()
	for i := 0; n > 0; i++ {
		size := min(n, max(1, min(5000, n/max(1, repos-i))))
		n -= size
		d := delivery(fmt.Sprint("crowd ", i))
		d.Event.Repo.ID = int64(i%repos + 1)
		if _, _, err := s.Accept(ctx, d); err != nil {
			tb.Fatal(err)
		}
		l, err := s.Claim(ctx, store.ClaimRequest{Owner: "w", Lease: time.Hour, Kinds: []tgr.JobKind{tgr.PlanJob}})
		if err != nil {
			tb.Fatal(err)
		}
		runs, err := s.Planned(ctx, l.Job.ID, l.Token, store.Planned{Runs: []store.PlannedRun{{WorkflowFile: "ci.yml", Plan: []byte(`{}`), Jobs: []tgr.Job{work("m")}}}})
		if err != nil {
			tb.Fatal(err)
		}
		err = s.Settle(ctx, runs[0], func(_ tgr.Run, jobs []tgr.Job) (store.Change, error) {
			x := store.Expansion{MaxParallel: parallel}
			for k := range size {
				x.Jobs = append(x.Jobs, tgr.Job{Name: fmt.Sprint("m ", k), Index: k, Total: size, Instance: json.RawMessage(`{}`)})
			}
			return store.Change{Expand: map[tgr.JobID]store.Expansion{jobs[0].ID: x}}, nil
		})
		if err != nil {
			tb.Fatal(err)
		}
		if parallel > 0 {
			for range parallel {
				if _, err := s.Claim(ctx, store.ClaimRequest{Owner: "w", Lease: time.Hour, Kinds: []tgr.JobKind{tgr.WorkJob}}); err != nil {
					tb.Fatal(err)
				}
			}
		}
	}
}
