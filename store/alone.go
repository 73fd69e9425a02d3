package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/terraphim/tgr"
)

// serverLock is the advisory lock of the server that a database has.
const serverLock = 0x7467725f73 // "tgr_s"

const (
	keepEvery = time.Second     // between two looks at one's own lock
	takeEvery = 2 * time.Second // between two looks at that of another server
	takeAfter = 3 * time.Second // that a server whose connection broke has to get the lock again
)

// Keep keeps other servers off a database that was opened with Config.Waiting. It returns nil when ctx ends, and an error
// of [tgr.Conflict] where another server has taken over, because the connection to the database was lost for too long: then
// this one has to end, and every write of it is refused. A file is kept by who locks its folder.
func (s *Store) Keep(ctx context.Context) error {
	if s.alone == nil {
		<-ctx.Done()
		return nil
	}
	return s.alone.keep(ctx)
}

// release makes known that nobody will come back: who is next need not wait for it.
func (a *alone) release(ctx context.Context, w *sql.DB) error {
	if a == nil {
		return nil
	}
	_, err := w.ExecContext(ctx, "DELETE FROM server WHERE token = $1", a.token)
	return err
}

// broken reports whether the last server has ended without release.
func (a *alone) broken(ctx context.Context) (bool, error) {
	var tables, servers int
	err := a.conn.QueryRowContext(ctx, "SELECT COUNT(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'server'").Scan(&tables)
	if err != nil || tables == 0 {
		return false, err
	}
	err = a.conn.QueryRowContext(ctx, "SELECT COUNT(*) FROM server").Scan(&servers)
	return servers > 0, err
}

// claim has the database know the server as the one that writes.
func (a *alone) claim(ctx context.Context, w *sql.DB) error {
	if a == nil {
		return nil
	}
	_, err := w.ExecContext(ctx, "INSERT INTO server (id, token) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET token = excluded.token", a.token)
	return err
}

// check fails where another server has taken over. It is called in each transaction that writes.
func (a *alone) check(ctx context.Context, q querier) error {
	if a == nil {
		return nil
	}
	var token string
	err := q.QueryRowContext(ctx, "SELECT token FROM server").Scan(&token)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if token != a.token { // the other one may have come and gone
		return tgr.Errorf("store.alone", tgr.Conflict, "another server has taken over the database")
	}
	return nil
}

// takeAlone returns when no other server uses the database, after a call of waiting if it has to wait for one.
func takeAlone(ctx context.Context, url string, waiting func()) (*alone, error) {
	a := &alone{url: url, token: tgr.NewToken()}
	for told, waited := false, false; ; {
		got, err := a.take(ctx)
		if err != nil && told && postgresUnavailable(err) { // the other server waits for the database, too
			a.close()
		} else if err != nil {
			return nil, errors.Join(err, a.close())
		}
		every := takeEvery
		if got {
			broken, err := a.broken(ctx)
			if err != nil {
				return nil, errors.Join(err, a.close())
			}
			if waited || !broken {
				return a, nil
			}
			if _, err := a.conn.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", int64(serverLock)); err != nil {
				return nil, errors.Join(err, a.close())
			}
			every = takeAfter
		} else if !told {
			told = true
			waiting()
		}
		waited = got
		if err := pause(ctx, every); err != nil {
			return nil, errors.Join(err, a.close())
		}
	}
}

// alone holds the lock, on a connection of its own: the lock goes with it. That says who is next; the token in the database
// says who may write, to the last transaction.
type alone struct {
	url   string
	token string
	db    *sql.DB
	conn  *sql.Conn
}

// open connects. The database notices within half a minute that the other end is gone: until then the lock would be held
// by a server whose host has lost its power.
func (a *alone) open(ctx context.Context) error {
	cfg, err := pgx.ParseConfig(a.url)
	if err != nil {
		return err
	}
	for name, value := range map[string]string{"application_name": "tgr alone", "tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5",
		"tcp_keepalives_count": "3", "tcp_user_timeout": "25000"} {
		cfg.RuntimeParams[name] = value
	}
	a.db = stdlib.OpenDB(*cfg)
	a.conn, err = a.db.Conn(ctx) // nil after an error
	return err
}

func (a *alone) close() error {
	if a == nil || a.db == nil {
		return nil
	}
	if a.conn != nil {
		a.conn.Close()
	}
	err := a.db.Close()
	a.db, a.conn = nil, nil
	return err
}

// take tries to get the lock.
func (a *alone) take(ctx context.Context) (got bool, err error) {
	ctx, done := context.WithTimeout(ctx, writeWithin)
	defer done()
	if a.conn == nil {
		if err := errors.Join(a.close(), a.open(ctx)); err != nil {
			return false, err
		}
	}
	err = a.conn.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1)", int64(serverLock)).Scan(&got)
	return got, err
}

// keep looks whether the connection lives, and gets the lock again where it does not.
func (a *alone) keep(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := pause(ctx, keepEvery); err != nil {
			return nil
		}
		limit, done := context.WithTimeout(ctx, writeWithin)
		err := a.conn.PingContext(limit)
		done()
		if err != nil && ctx.Err() == nil {
			if err := a.again(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// again gets the lock on a new connection. What refuses it is another server, or what is left of the old connection.
func (a *alone) again(ctx context.Context) error {
	for {
		a.close()
		got, err := a.take(ctx)
		if err == nil {
			if err = a.check(ctx, a.conn); got && err == nil || tgr.CodeOf(err) == tgr.Conflict {
				return err
			}
		}
		if err := pause(ctx, keepEvery); err != nil {
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
