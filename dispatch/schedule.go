package dispatch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// Bounds of what a repository waits for. It gets what its first files in the order of their paths ask for.
const (
	maxFileSchedules = 100
	maxSchedules     = 1000
	maxFollowers     = 256 << 10 // bytes of the filters of all
)

// late is how long after its time a schedule may still be started, when there was no server then.
const late = time.Hour

// Timetable is the part of the store that the clock needs.
type Timetable interface {
	// Due lists up to limit schedules whose Next is not after now, the most overdue first.
	Due(ctx context.Context, now time.Time, limit int) ([]tgr.Schedule, error)
	// Fire sets the next time of a schedule (zero: it has none) and accepts d, if it is not nil: both, or neither. won is
	// false, and nothing has changed, where the schedule is not as Due has listed it any more.
	Fire(ctx context.Context, s tgr.Schedule, next time.Time, d *tgr.Delivery) (won bool, err error)
}

// Clock starts workflows at the times of their on.schedule, for which GitHub sends no webhook. The times are learnt when events of
// a default branch are planned. Of several clocks on one timetable, one starts each time.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/events-that-trigger-workflows#schedule
type Clock struct {
	Timetable Timetable
	Wake      func() // called when events were accepted
	Log       *slog.Logger
	Now       func() time.Time // nil: time.Now
}

// Run starts what is due, at its beginning and at every full minute, until ctx ends.
func (c Clock) Run(ctx context.Context) error {
	if c.Now == nil {
		c.Now = time.Now
	}
	for {
		if err := c.strike(ctx); err != nil && ctx.Err() == nil {
			c.Log.Error("start what is scheduled", "error", err)
		}
		now := c.Now()
		timer := time.NewTimer(now.Truncate(time.Minute).Add(time.Minute).Sub(now))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// strike starts everything that is due.
func (c Clock) strike(ctx context.Context) error {
	const batch = 100
	for {
		list, err := c.Timetable.Due(ctx, c.Now(), batch)
		if err != nil {
			return err
		}
		var errs []error
		for _, s := range list {
			if err := c.fire(ctx, s); err != nil {
				errs = append(errs, fmt.Errorf("%s of %s, '%s': %w", s.File, s.Repo.FullName, s.Cron, err))
			}
		}
		if len(list) < batch || len(errs) > 0 {
			return errors.Join(errs...)
		}
	}
}

// fire starts one schedule whose time has come, unless it is too late for it.
func (c Clock) fire(ctx context.Context, s tgr.Schedule) error {
	log := c.Log.With("repo", s.Repo.FullName, "workflow", s.File, "cron", s.Cron)
	now := c.Now()
	at, next, unreadable := due(s, now) // what this version cannot read is forgotten
	var d *tgr.Delivery
	if !at.IsZero() {
		var err error
		if d, err = scheduled(s, at, now); err != nil {
			return err
		}
	}
	won, err := c.Timetable.Fire(ctx, s, next, d)
	switch {
	case err != nil || !won:
		return err
	case unreadable != nil:
		return unreadable
	case d == nil:
		log.Warn("a scheduled time has passed while there was no server", "time", s.Next, "next", next)
	default:
		log.Info("scheduled", "time", at, "next", next)
		c.Wake()
	}
	return nil
}

// due says which time of a schedule is to be started now, and which is the next one. Of those that were missed it is the
// latest, or none (zero) if that was too long ago. Where there is no next one it is zero.
func due(s tgr.Schedule, now time.Time) (at, next time.Time, err error) {
	w := workflow.Schedule{Cron: s.Cron, Timezone: s.Timezone}
	next = s.Next
	if oldest := now.Add(-late); next.Before(oldest) {
		if next, err = w.Next(oldest); err != nil {
			return time.Time{}, time.Time{}, err
		}
	}
	for !next.IsZero() && !next.After(now) {
		at = next
		if next, err = w.Next(at.Add(workflow.MinCronInterval - time.Minute)); err != nil {
			return time.Time{}, time.Time{}, err
		}
	}
	return at, next, nil
}

// scheduled is the event of a schedule's time. GitHub's has no more fields than the cron line, the workflow's file, and
// what is told of the repository. It is by whoever brought the schedule to the default branch.
func scheduled(s tgr.Schedule, at, now time.Time) (*tgr.Delivery, error) {
	actor := or(s.Actor, "tgr")
	payload, err := json.Marshal(map[string]any{
		"schedule": s.Cron, "workflow": s.File, "repository": repositoryOf(s.Repo, s.Repository),
		"sender": map[string]any{"login": actor, "id": s.ActorID},
	})
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(fmt.Appendf(nil, "%d\n%s\n%s\n%s\n%d", s.Repo.ID, s.File, s.Cron, s.Timezone, at.Unix()))
	return &tgr.Delivery{ID: tgr.DeliveryID(fmt.Sprintf("tgr-schedule-%x", id[:16])), Received: now, Event: tgr.Event{
		Name: "schedule", Repo: s.Repo, Ref: defaultRef(s.Repo), Actor: actor, ActorID: s.ActorID, Payload: payload,
	}}, nil
}

// repositoryOf is a repository as payloads have it: as GitHub has sent it, where that is known.
func repositoryOf(r tgr.Repo, sent json.RawMessage) any {
	if len(sent) > 0 {
		return sent
	}
	owner, name, _ := strings.Cut(r.FullName, "/")
	return map[string]any{
		"id": r.ID, "name": name, "full_name": r.FullName, "owner": map[string]any{"login": owner, "name": owner},
		"private": r.Private, "fork": r.Fork, "clone_url": r.CloneURL, "default_branch": r.DefaultBranch,
	}
}

// maxRepository is how many bytes of what a payload says of its repository are kept. GitHub's are some 6 KiB.
const maxRepository = 64 << 10

// sentRepository is what an event's payload says of its repository.
func sentRepository(ev tgr.Event) json.RawMessage {
	var p struct {
		Repository json.RawMessage `json:"repository"`
	}
	if json.Unmarshal(ev.Payload, &p) != nil || len(p.Repository) > maxRepository {
		return nil
	}
	return p.Repository
}

// ofDefaultBranch reports whether an event is of the latest commit of the default branch, as far as it is known before the
// commit is fetched: an event without a commit is of what its branch is then.
func ofDefaultBranch(ev tgr.Event) bool {
	return ev.Ref == defaultRef(ev.Repo) && !ev.Deleted && (ev.Name == "push" || ev.SHA == "")
}

// awaited is what the workflows of a default branch wait for that no webhook brings. Files with errors wait for nothing.
func (d *Dispatcher) awaited(ev tgr.Event, files []File, s *sink) *tgr.Awaited {
	a := &tgr.Awaited{Repository: sentRepository(ev)}
	room := maxFollowers
	for _, f := range files {
		// Most files wait for nothing of the kind, and need not be parsed for it.
		if f.Err != nil || !bytes.Contains(f.Data, []byte("schedule")) && !bytes.Contains(f.Data, []byte("workflow_run")) {
			continue
		}
		w, problems := workflow.Parse(f.Path, f.Data)
		if w == nil || workflow.Failed(problems) {
			continue
		}
		if on := w.On("schedule"); on != nil {
			d.addSchedules(a, ev, f.Path, on.Schedules, s)
		}
		if on := w.On("workflow_run"); on != nil {
			f := tgr.Follower{Types: on.Types, Workflows: on.Workflows, Branches: on.Branches, BranchesIgnore: on.BranchesIgnore}
			if size(f) > room {
				s.say("##[warning]%s: it is not started by other runs: the filters of workflow_run are longer than %d KiB together", w.File, maxFollowers>>10)
				continue
			}
			room -= size(f)
			a.Followers = append(a.Followers, f)
		}
	}
	return a
}

// size is about how many bytes the filters of a follower take.
func size(f tgr.Follower) int {
	n := 0
	for _, s := range slices.Concat(f.Types, f.Workflows, f.Branches, f.BranchesIgnore) {
		n += len(s) + 3
	}
	return n + 64
}

// addSchedules adds the schedules of one workflow. Lines that mean the same are one.
func (d *Dispatcher) addSchedules(a *tgr.Awaited, ev tgr.Event, file string, list []workflow.Schedule, s *sink) {
	first, now := len(a.Schedules), d.c.Now()
	for _, e := range list {
		if slices.ContainsFunc(a.Schedules[first:], func(o tgr.Schedule) bool {
			return o.Timezone == e.Timezone && slices.Equal(strings.Fields(o.Cron), strings.Fields(e.Cron))
		}) {
			continue
		}
		if len(a.Schedules)-first == maxFileSchedules || len(a.Schedules) == maxSchedules {
			s.say("##[warning]%s: its schedules from line %d on are left out: a file has at most %d, and a repository %d", file, e.Pos.Line, maxFileSchedules, maxSchedules)
			return
		}
		next, err := e.Next(now)
		if err != nil || next.IsZero() {
			s.say("##[warning]%s: the schedule '%s' is never due", file, e.Cron)
			continue
		}
		a.Schedules = append(a.Schedules, tgr.Schedule{File: file, Cron: e.Cron, Timezone: e.Timezone, Next: next, Actor: ev.Actor, ActorID: ev.ActorID})
	}
}
