// Package learn learns from runs that have ended: how often and how long things succeed, what is flaky, which failures are
// the same, and what has helped. It is a fold over the log of finished jobs into tables of its own, in a database of its
// own: it can be thrown away and made again, nothing that runs waits for it, and it decides nothing unless asked to.
//
// What it reads (names, commands, log lines) is hostile. Everything that it keeps is bounded for each repository, and what
// pull requests of forks teach is kept apart.
package learn

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/terraphim/tgr"
)

// Record is one finished job as the log of runs has it.
type Record struct {
	Seq      int64   // its place in the log: grows, and never changes
	Run      tgr.Run // needs no plan; of the event's payload only the changed files of a push are read
	Job      tgr.Job // completed, with its steps
	Commands map[int]Command
	// Log has at least the last 200 lines of every step, or all there are.
	Log  []tgr.LogLine
	Lost bool // the log is gone
}

// Command is what a step ran, as the workflow has it.
type Command struct{ Run, Uses string }

// Source is the log of runs.
type Source interface {
	// Finished returns the records after a place in the log, in its order; none: there are no more yet. The same
	// place has the same record for ever, but for logs that somebody removed.
	Finished(ctx context.Context, after int64, limit int) ([]Record, error)
}

// Config says where the learner keeps what it learns. Path and Source are required.
type Config struct {
	Path   string // of its SQLite database, which is made where there is none
	Source Source
	Log    *slog.Logger // nil: nothing is logged
	Learnt func(Record) // if not nil, is told of every record once what it taught is stored; not by a rebuild
}

const (
	batch      = 64               // records of one transaction
	spacesHeld = 32               // repositories in memory
	pollEvery  = 30 * time.Second // for records that nobody told of
)

// Learner is an open learner. Its methods may be called concurrently. The caller closes it.
type Learner struct {
	cfg  Config
	db   *sql.DB
	wake chan struct{}

	folding   sync.Mutex // held by who folds, and guards unwritten
	unwritten []Record   // that were learnt from, and are not in the database yet

	mu     sync.Mutex // guards what follows; never held while waiting for the log or for a write
	cursor int64
	spaces map[string]*space
	used   map[string]int64 // when, in records
}

// Open opens the learner's database. One that another version wrote is emptied, and learnt again by Run.
func Open(ctx context.Context, cfg Config) (*Learner, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	db, err := openDB(ctx, cfg.Path)
	if err != nil {
		return nil, &tgr.Error{Op: "learn.open", Code: tgr.Internal, Message: "open what was learnt; tgr learn rebuild makes it anew", Err: err}
	}
	l := &Learner{cfg: cfg, db: db, wake: make(chan struct{}, 1), spaces: map[string]*space{}, used: map[string]int64{}}
	if l.cursor, err = readCursor(ctx, db); err != nil {
		db.Close()
		return nil, err
	}
	if err := l.preload(ctx); err != nil {
		db.Close()
		return nil, err
	}
	return l, nil
}

// Close closes the database. What was not written is learnt again from the log.
func (l *Learner) Close() error { return l.db.Close() }

// Finished tells that the log has a new record. It never blocks.
func (l *Learner) Finished(tgr.RunID, tgr.JobID) {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run learns what the log has and what comes, until ctx ends. An error of the log or the database is logged and tried again.
func (l *Learner) Run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if _, err := l.CatchUp(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Log.Warn("learn from finished jobs", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		case <-tick.C:
		}
	}
}

// CatchUp learns from all records that the log has now, and returns how many they were.
func (l *Learner) CatchUp(ctx context.Context) (int, error) {
	l.folding.Lock()
	defer l.folding.Unlock()
	return l.catchUp(ctx, true)
}

func (l *Learner) catchUp(ctx context.Context, told bool) (int, error) {
	n := 0
	for {
		if err := l.settle(ctx, told); err != nil {
			return n, err
		}
		l.mu.Lock()
		after := l.cursor
		l.mu.Unlock()
		records, err := l.cfg.Source.Finished(ctx, after, batch)
		if err != nil || len(records) == 0 {
			return n, err
		}
		for _, r := range records {
			if err := l.learn(ctx, r); err != nil {
				return n, err
			}
			l.unwritten = append(l.unwritten, r)
			n++
		}
	}
}

// settle writes what was learnt, and tells of it. What could not be written stays to be written the next time.
func (l *Learner) settle(ctx context.Context, told bool) error {
	if len(l.unwritten) == 0 {
		return nil
	}
	if err := l.flush(ctx); err != nil {
		return err
	}
	records := l.unwritten
	l.unwritten = nil
	for _, r := range records {
		if told && l.cfg.Learnt != nil {
			l.cfg.Learnt(r)
		}
	}
	return nil
}

// learn folds one record in.
func (l *Learner) learn(ctx context.Context, r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Seq <= l.cursor {
		return tgr.Errorf("learn", tgr.Internal, "the log gives record %d after %d", r.Seq, l.cursor)
	}
	sp, err := l.space(ctx, spaceOf(r.Run.Event), r.Run.Event)
	if err != nil {
		return err
	}
	l.cursor = r.Seq
	l.safely(sp, r)
	return nil
}

// safely folds a record; a bug of ours costs that record and not the server.
func (l *Learner) safely(sp *space, r Record) {
	defer func() {
		if p := recover(); p != nil {
			l.cfg.Log.Error("a bug: a job taught nothing", "job", r.Job.ID, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	sp.fold(r)
}

// spaceOf names the space of an event: that of its repository, or of its forks.
func spaceOf(e tgr.Event) string {
	name := fmt.Sprint(e.Repo.ID)
	if e.Repo.ID == 0 {
		name = "name/" + cut(e.Repo.FullName, 200)
	}
	if e.Forked {
		name += "/forks"
	}
	return name
}

// space returns a space, from memory or the database, or a new one. l.mu is held.
func (l *Learner) space(ctx context.Context, name string, e tgr.Event) (*space, error) {
	l.used[name] = l.cursor
	if sp := l.spaces[name]; sp != nil {
		return sp, nil
	}
	sp, err := loadSpace(ctx, l.db, name, newSpace(e.Repo.FullName, e.Forked))
	if err != nil {
		return nil, err
	}
	l.spaces[name] = sp
	return sp, nil
}

// flush writes what changed, with the place in the log that it belongs to, and forgets the spaces least recently used.
func (l *Learner) flush(ctx context.Context) error {
	l.mu.Lock()
	rows, cursor, err := l.changed()
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if err := writeRows(ctx, l.db, rows, cursor); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, sp := range l.spaces {
		clear(sp.dirty) // who folds is who flushes: nothing was added meanwhile
	}
	if over := len(l.spaces) - spacesHeld; over > 0 {
		for _, name := range oldest(l.used, 0, func(n int64) int64 { return n })[:over] {
			delete(l.spaces, name)
			delete(l.used, name)
		}
	}
	return nil
}

// Report says what a rebuild found.
type Report struct {
	Records int    `json:"records"`
	Lost    int    `json:"logs_lost"` // jobs whose log is gone, and teaches nothing any more
	Before  string `json:"before"`    // SHA-256 of the state
	After   string `json:"after"`
}

// Same reports whether the state is what it was.
func (r Report) Same() bool { return r.Before == r.After }

// Rebuild forgets everything and learns it again from the log. While the logs of the jobs are all there, the state is the same
// afterwards, byte for byte.
func (l *Learner) Rebuild(ctx context.Context) (r Report, err error) {
	l.folding.Lock()
	defer l.folding.Unlock()
	if _, err = l.catchUp(ctx, false); err != nil {
		return r, err
	}
	if r.Before, err = l.Digest(ctx); err != nil {
		return r, err
	}
	l.mu.Lock()
	clear(l.spaces)
	clear(l.used)
	l.cursor = 0
	err = wipe(ctx, l.db)
	l.mu.Unlock()
	if err != nil {
		return r, err
	}
	if r.Records, err = l.catchUp(ctx, false); err != nil {
		return r, err
	}
	if r.After, err = l.Digest(ctx); err != nil {
		return r, err
	}
	heads, err := readHeads(ctx, l.db)
	for _, h := range heads {
		r.Lost += h.Lost
	}
	return r, err
}

// Timeout is the time-out that the durations of a job suggest, 0 where they are too few, where the repository was not used
// lately, or while the learner is busy: a job does not wait for it. It looks at memory alone.
func (l *Learner) Timeout(run tgr.Run, job tgr.Job) time.Duration {
	if !l.mu.TryLock() {
		return 0
	}
	defer l.mu.Unlock()
	sp := l.spaces[spaceOf(run.Event)]
	if sp == nil {
		return 0
	}
	u := sp.units[jobKey(run, job)]
	if u == nil {
		return 0
	}
	return TimeoutFor(u.Ms)
}

// Estimate is how long a job is likely to take: the median of its last successes. 0 as with Timeout.
func (l *Learner) Estimate(run tgr.Run, job tgr.Job) time.Duration {
	if !l.mu.TryLock() {
		return 0
	}
	defer l.mu.Unlock()
	sp := l.spaces[spaceOf(run.Event)]
	if sp == nil {
		return 0
	}
	u := sp.units[jobKey(run, job)]
	if u == nil || len(u.Ms) < Enough {
		return 0
	}
	return millis(quantile(lately(u.Ms), 0.5))
}

// preload loads the spaces that were used last.
func (l *Learner) preload(ctx context.Context) error {
	heads, err := readHeads(ctx, l.db)
	if err != nil {
		return err
	}
	slices.SortFunc(heads, func(a, b spaceHead) int { return int(b.Seq - a.Seq) })
	for _, h := range heads[:min(len(heads), spacesHeld)] {
		sp, err := loadSpace(ctx, l.db, h.space, newSpace(h.Repo, h.Forks))
		if err != nil {
			return err
		}
		l.spaces[h.space], l.used[h.space] = sp, h.Seq
	}
	return nil
}
