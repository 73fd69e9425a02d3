package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// at is a time on the day of the tests' clock.
func (e *env) at(hour, minute int) time.Time {
	y, m, d := e.clock.now().Date()
	return time.Date(y, m, d, hour, minute, 0, 0, time.UTC)
}

// learns plans an accepted event that starts nothing, of which it is known what the default branch waits for.
func (e *env) learns(l *store.Lease, list ...tgr.Schedule) {
	e.t.Helper()
	_, err := e.Planned(e.ctx, l.Job.ID, l.Token, store.Planned{Reason: "nothing to do", Awaited: &tgr.Awaited{
		Repository: json.RawMessage(`{"id":7}`), Schedules: list,
	}})
	e.must(err)
}

// scheduled lists what is due at a time, as "file cron next".
func (e *env) scheduled(at time.Time) []string {
	e.t.Helper()
	list, err := e.Due(e.ctx, at, 0)
	e.must(err)
	out := []string{}
	for _, s := range list {
		out = append(out, fmt.Sprintf("%s %s %s", s.File, s.Cron, s.Next.Format("15:04")))
	}
	return out
}

func (e *env) wantScheduled(want ...string) {
	e.t.Helper()
	if diff := cmp.Diff(append([]string{}, want...), e.scheduled(e.at(23, 59))); diff != "" {
		e.t.Errorf("schedules (-want +got):\n%s", diff)
	}
}

func TestSchedulesFollowTheDefaultBranch(t *testing.T) { each(t, schedulesFollow) }

func schedulesFollow(t *testing.T, e *env) {
	nightly := tgr.Schedule{File: "nightly.yml", Cron: "0 4 * * *", Next: e.at(4, 0), Actor: "ada", ActorID: 1}
	weekly := tgr.Schedule{File: "nightly.yml", Cron: "0 5 * * 1", Timezone: "Europe/Berlin", Next: e.at(5, 0)}
	e.accept("1")
	e.learns(e.claim(), nightly, weekly)
	e.wantScheduled("nightly.yml 0 4 * * * 04:00", "nightly.yml 0 5 * * 1 05:00")
	if got := e.scheduled(e.at(3, 59)); len(got) != 0 {
		t.Errorf("due before its time: %v", got)
	}
	list, err := e.Due(e.ctx, e.at(4, 0), 0)
	e.must(err)
	want := nightly
	want.Repo, want.Repository = delivery("1").Event.Repo, json.RawMessage(`{"id":7}`)
	if diff := cmp.Diff([]tgr.Schedule{want}, list); diff != "" {
		t.Errorf("due at 04:00 (-want +got):\n%s", diff)
	}

	// One that stays keeps its time and who brought it, and of the same line in two time zones each has its own.
	again := nightly
	again.Next, again.Actor = e.at(14, 0), "eve"
	other := tgr.Schedule{File: "nightly.yml", Cron: "0 5 * * 1", Next: e.at(6, 0)}
	e.accept("2")
	e.learns(e.claim(), again, other)
	e.wantScheduled("nightly.yml 0 4 * * * 04:00", "nightly.yml 0 5 * * 1 06:00")
	if list, err = e.Due(e.ctx, e.at(4, 0), 0); err != nil || list[0].Actor != "ada" {
		t.Errorf("by %+v, %v; want ada", list, err)
	}

	// What an earlier event says when it is planned at last is out of date.
	e.accept("3")
	late := e.claim()
	e.accept("4")
	e.learns(e.claim(), other)
	e.learns(late, nightly)
	e.wantScheduled("nightly.yml 0 5 * * 1 06:00")

	e.accept("5")
	e.learns(e.claim())
	e.wantScheduled()
}

// A repository is its number, whatever it is called; a name has one repository.
func TestSchedulesOfRepositories(t *testing.T) { each(t, schedulesOfRepositories) }

func schedulesOfRepositories(t *testing.T, e *env) {
	learn := func(id string, repo int64, name, file string) {
		t.Helper()
		d := delivery(id)
		d.Event.Repo.ID, d.Event.Repo.FullName = repo, name
		_, _, err := e.Accept(e.ctx, d)
		e.must(err)
		e.learns(e.claim(), tgr.Schedule{File: file, Cron: "0 4 * * *", Next: e.at(4, 0)})
	}
	learn("1", 7, "ada/engine", "a.yml")
	learn("2", 8, "ada/other", "b.yml")
	e.wantScheduled("a.yml 0 4 * * * 04:00", "b.yml 0 4 * * * 04:00")
	learn("3", 7, "ada/renamed", "a.yml")
	e.wantScheduled("a.yml 0 4 * * * 04:00", "b.yml 0 4 * * * 04:00")
	if list, err := e.Due(e.ctx, e.at(4, 0), 1); err != nil || list[0].Repo.FullName != "ada/renamed" {
		t.Errorf("due: %+v, %v; want the new name", list, err)
	}
	learn("4", 9, "ADA/other", "c.yml") // deleted, and made again
	e.wantScheduled("a.yml 0 4 * * * 04:00", "c.yml 0 4 * * * 04:00")
}

// firing is the event of a schedule's time.
func firing(s tgr.Schedule) *tgr.Delivery {
	return &tgr.Delivery{ID: tgr.DeliveryID(fmt.Sprintf("tgr-schedule-%d", s.Next.Unix())), Event: tgr.Event{
		Name: "schedule", Repo: s.Repo, Ref: "refs/heads/main", Actor: "ada"}}
}

func TestFire(t *testing.T) { each(t, fire) }

func fire(t *testing.T, e *env) {
	e.accept("1")
	e.learns(e.claim(), tgr.Schedule{File: "a.yml", Cron: "0 * * * *", Next: e.at(4, 0)})
	list, err := e.Due(e.ctx, e.at(4, 0), 0)
	e.must(err)
	won, err := e.Fire(e.ctx, list[0], e.at(5, 0), firing(list[0]))
	if err != nil || !won {
		t.Fatalf("Fire = %v, %v", won, err)
	}
	if l := e.claim(tgr.PlanJob); l.Run.Event.Name != "schedule" || l.Run.Event.Repo.ID != 7 {
		t.Errorf("claimed %+v; want the schedule's plan job", l.Run.Event)
	}
	e.wantScheduled("a.yml 0 * * * * 05:00")
	if won, err = e.Fire(e.ctx, list[0], e.at(5, 0), firing(list[0])); err != nil || won {
		t.Errorf("Fire of a time that was started = %v, %v", won, err)
	}
	e.nothing()

	// An event that cannot be accepted leaves the time due.
	if list, err = e.Due(e.ctx, e.at(5, 0), 0); err != nil {
		t.Fatal(err)
	}
	nameless := firing(list[0])
	nameless.ID = ""
	if won, err = e.Fire(e.ctx, list[0], e.at(6, 0), nameless); err == nil || won {
		t.Errorf("Fire with an event without an id = %v, %v", won, err)
	}
	e.wantScheduled("a.yml 0 * * * * 05:00")

	// A time that was missed sets the next one alone, and one that is the last is forgotten.
	if won, err = e.Fire(e.ctx, list[0], e.at(6, 0), nil); err != nil || !won {
		t.Errorf("Fire without an event = %v, %v", won, err)
	}
	e.wantScheduled("a.yml 0 * * * * 06:00")
	list, err = e.Due(e.ctx, e.at(6, 0), 0)
	e.must(err)
	if won, err = e.Fire(e.ctx, list[0], time.Time{}, nil); err != nil || !won {
		t.Errorf("Fire without a next time = %v, %v", won, err)
	}
	e.wantScheduled()
	e.nothing()
}

// Two servers on one database, and several claims of each: every time is an event once.
func TestFireRace(t *testing.T) {
	each(t, fireRace)
}

func fireRace(t *testing.T, e *env) {
	first := e.Store
	e.open(store.Config{})
	stores := []*store.Store{first, e.Store}
	e.accept("1")
	e.learns(e.claim(), tgr.Schedule{File: "a.yml", Cron: "0 * * * *", Next: e.at(1, 0)})
	const rounds, claims = 20, 4
	for hour := 1; hour <= rounds; hour++ {
		list, err := e.Due(e.ctx, e.at(hour, 0), 0)
		if err != nil || len(list) != 1 {
			t.Fatalf("due at %d:00: %v, %v", hour, list, err)
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		var errs error
		wins := 0
		for _, s := range stores {
			for range claims {
				wg.Go(func() {
					won, err := s.Fire(e.ctx, list[0], e.at(hour+1, 0), firing(list[0]))
					mu.Lock()
					defer mu.Unlock()
					errs = errors.Join(errs, err)
					if won {
						wins++
					}
				})
			}
		}
		wg.Wait()
		if errs != nil || wins != 1 {
			t.Fatalf("at %d:00 %d of %d claims won, %v", hour, wins, len(stores)*claims, errs)
		}
	}
	runs, err := e.Runs(e.ctx, store.RunFilter{Event: "schedule"})
	if err != nil || len(runs) != rounds {
		t.Errorf("%d runs, %v; want %d", len(runs), err, rounds)
	}
}

// A repository that cannot be read any more does not come due for ever; one that could not be read for a while does.
func TestSchedulesThatCannotBePlanned(t *testing.T) { each(t, unplannable) }

func unplannable(t *testing.T, e *env) {
	hourly := tgr.Schedule{File: "a.yml", Cron: "0 * * * *", Next: e.clock.now()}
	e.accept("1")
	e.learns(e.claim(), hourly)
	n := 0
	strikes := func() *store.Lease {
		t.Helper()
		list, err := e.Due(e.ctx, e.clock.now(), 0)
		e.must(err)
		if len(list) == 0 {
			return nil
		}
		n++
		d := firing(list[0])
		d.ID = tgr.DeliveryID(fmt.Sprintf("s%d", n))
		if won, err := e.Fire(e.ctx, list[0], e.clock.now().Add(time.Hour), d); err != nil || !won {
			t.Fatalf("Fire = %v, %v", won, err)
		}
		e.clock.add(time.Hour)
		return e.claim(tgr.PlanJob)
	}
	fails := func(l *store.Lease) {
		t.Helper()
		e.must(e.Finish(e.ctx, l.Job.ID, l.Token, store.JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameUser, Reason: "the repository is gone"}))
	}
	for range 20 {
		fails(strikes())
	}
	e.learns(strikes(), hourly) // it is back
	for range 25 {
		fails(strikes())
	}
	if l := strikes(); l != nil {
		t.Errorf("still due after a day of failures")
	}
	e.accept("2")
	e.learns(e.claim(), hourly)
	if l := strikes(); l == nil {
		t.Errorf("not due once it is known again")
	}
}
