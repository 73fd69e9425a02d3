// Package store is the SQL truth: deliveries, runs, jobs and the reports that GitHub has yet to get.
//
// Everything else may be lost and is rebuilt from here. A method that changes something has made it durable
// (fsync) when it returns nil. A job changes its status only through [tgr.NextJob], inside a transaction that read
// it first; a worker that holds a job proves it with the lease's fencing token, and a stale token is refused
// with [tgr.Conflict].
package store

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/terraphim/tgr"
)

// MaxTries is how often a job is given a machine before a fault of ours becomes its conclusion.
const MaxTries = 3

// maxPlans is how often an event is planned before a fault of ours becomes its run's conclusion.
const maxPlans = 10

// Config says where the database is: in a file, or on a server. Path or URL is required.
type Config struct {
	tgr.Redacted

	Path string // the SQLite file. Its folder is made with mode 0700, the file with 0600; ":memory:" is refused
	URL  string // the PostgreSQL database, if not "": postgres://user:password@host/database, or key=value pairs
	// Waiting, if not nil, says that this is a server: it has a PostgreSQL database to itself, so that Open returns when no
	// other one uses it, and calls Waiting if it has to wait for one. The caller runs Keep.
	Waiting func()
	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger     // nil: nothing is logged

	// MaxOutputs is how many bytes the outputs of all jobs of an attempt of a run may have, about as their UTF-16 does.
	// 0: 50 MiB, https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#jobsjob_idoutputs
	MaxOutputs int

	// Reports, if not nil, is called in the transaction of every change to the status of a run or of one of its
	// jobs, with the run (without plan and payload) and its work jobs as they are after the change. What it returns
	// goes to the outbox in the same transaction, so that no change is left unreported. It must be quick, must
	// not block and must not call the store.
	Reports func(run tgr.Run, jobs []tgr.Job) []Outgoing

	// Follow, if not nil, is called in the transaction in which a planned run is requested, is in_progress, or is completed,
	// where workflows of its repository follow others: with the run as it is after it, its plan and payload, and those
	// workflows. What it returns, if ok, is accepted in the same transaction, once for each attempt and action. It must
	// be quick, must not block and must not call the store.
	Follow func(run tgr.Run, action string, followers []tgr.Follower) (ev tgr.Event, ok bool)

	// Changed, if not nil, is called when a change of a run, of its jobs or of their steps is durable. It must not block.
	Changed func(run tgr.RunID)
}

// Store is an open database. Its methods may be called concurrently.
type Store struct {
	cfg     Config
	dialect dialect
	w       *sql.DB // one connection: used by the writer goroutine alone
	r       reader
	writer  *writer
	alone   *alone // nil: nobody is kept off

	bodies bodies // of the reports that are durable; the writer's own

	mu     sync.Mutex
	nudged map[tgr.RunID]bool // runs to be settled because of another run's change
}

// Open opens the database of cfg, makes it if there is none, and brings its schema up to date. A schema newer
// than this program is refused. The caller closes the store.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxOutputs <= 0 {
		cfg.MaxOutputs = 50 << 20
	}
	d, openDB, at := sqliteDialect(), openSQLite, cfg.Path
	if cfg.URL != "" {
		d, openDB, at = postgresDialect(), openPostgres, cfg.URL
	}
	w, r, err := openDB(ctx, at)
	if err != nil {
		return nil, d.fault("open", err)
	}
	s := &Store{cfg: cfg, dialect: d, w: w, r: reader{r, d}, nudged: map[tgr.RunID]bool{}, bodies: bodies{}}
	if err := s.prepare(ctx); err != nil {
		return nil, d.fault("open", errors.Join(err, s.closeAll()))
	}
	s.writer = newWriter(s)
	return s, nil
}

// prepare makes the database ours, and brings its schema up to date: in this order, so that it does not change below the
// server that there is.
func (s *Store) prepare(ctx context.Context) (err error) {
	if s.cfg.URL != "" && s.cfg.Waiting != nil {
		if s.alone, err = takeAlone(ctx, s.cfg.URL, s.cfg.Waiting); err != nil {
			return err
		}
	}
	if err := s.dialect.migrate(ctx, s.w, s.cfg.Log); err != nil {
		return err
	}
	return s.alone.claim(ctx, s.w)
}

func (s *Store) closeAll() error { return errors.Join(s.r.Close(), s.w.Close(), s.alone.close()) }

// Close waits for the writes that were begun, refuses later ones, and closes the database. It may be called twice, and not
// while Keep runs.
func (s *Store) Close() error {
	s.writer.close()
	ctx, done := context.WithTimeout(context.Background(), 5*time.Second)
	defer done()
	if err := s.alone.release(ctx, s.w); err != nil {
		s.cfg.Log.Warn("the next server will wait for this one", "error", err)
	}
	return s.closeAll()
}

// committed tells of what a transaction did, now that it is durable.
func (s *Store) committed(t *tx) {
	if len(s.bodies) > keptBodies {
		clear(s.bodies)
	}
	maps.Copy(s.bodies, t.bodies)
	s.mu.Lock()
	maps.Copy(s.nudged, t.nudged)
	s.mu.Unlock()
	if s.cfg.Changed != nil {
		for run := range t.touched {
			s.cfg.Changed(run)
		}
	}
}

// Nudged returns the runs that are to be settled because another one left a concurrency group, or wants it: those since
// the last call. A caller that loses them finds them among [Store.Unsettled].
func (s *Store) Nudged() []tgr.RunID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := slices.Sorted(maps.Keys(s.nudged))
	clear(s.nudged)
	return ids
}

// Ping reports whether the database can be written to: it writes, because a full disk shows in no other way.
func (s *Store) Ping(ctx context.Context) error {
	return s.write(ctx, "ping", func(t *tx) error {
		_, err := t.Exec("INSERT INTO pings (id, at) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET at = excluded.at", nanos(t.now))
		return err
	})
}
