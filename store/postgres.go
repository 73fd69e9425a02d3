package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/terraphim/tgr"
)

// writersLock is the advisory lock of who writes: servers that share a database take turns, as the writes of one do.
const writersLock = 0x7467725f77 // "tgr_w"

// writeWithin bounds a transaction, and how long it waits for the servers before it.
const writeWithin = 30 * time.Second

// postgresDialect is PostgreSQL's.
func postgresDialect() dialect {
	return dialect{
		name: goose.DialectPostgres, folder: "migrations/postgres", unavailable: postgresUnavailable, broken: postgresBroken,
		// A statement sees what was committed before it: after the lock, all that others have written.
		begin: fmt.Sprintf("SELECT pg_advisory_xact_lock(%d)", int64(writersLock)), limit: writeWithin, arg: postgresArg,
		locker: func() (lock.SessionLocker, error) { return lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300)) },
	}
}

// postgresUnavailable goes by the class of the error: https://www.postgresql.org/docs/current/errcodes-appendix.html
func postgresUnavailable(err error) bool {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return postgresBroken(err)
	}
	switch e.Code[:min(2, len(e.Code))] {
	case "08", "40", "53", "55", "57", "58": // connection, rollback, resources, locks, operator, system
		return true
	}
	return e.Code == "25006" // read only: a replica, until it is promoted
}

// postgresBroken reports whether the connection is no more.
func postgresBroken(err error) bool {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return strings.HasPrefix(e.Code, "57P") // the database was shut down, or has crashed
	}
	var network net.Error
	var connect *pgconn.ConnectError
	lost := []error{pgconn.ErrConnClosed, sql.ErrConnDone, driver.ErrBadConn, net.ErrClosed, io.EOF, io.ErrUnexpectedEOF}
	return errors.As(err, &network) || errors.As(err, &connect) || pgconn.SafeToRetry(err) ||
		slices.ContainsFunc(lost, func(l error) bool { return errors.Is(err, l) })
}

// postgresArg makes text of what SQLite takes for text and PostgreSQL does not.
func postgresArg(v any) any {
	s, ok := v.(string)
	if !ok || strings.IndexByte(s, 0) < 0 && utf8.ValidString(s) {
		return v
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}

// Probe connects to a PostgreSQL database and says what it is, such as "PostgreSQL 15.8, database tgr". It changes nothing.
func Probe(ctx context.Context, url string) (string, error) {
	w, r, err := openPostgres(ctx, url)
	if err != nil {
		return "", postgresDialect().fault("probe", err)
	}
	defer w.Close()
	defer r.Close()
	var version, name string
	err = r.QueryRowContext(ctx, "SELECT split_part(current_setting('server_version'), ' ', 1), current_database()").Scan(&version, &name)
	return "PostgreSQL " + version + ", database " + name, postgresDialect().fault("probe", err)
}

// openPostgres opens two pools: one connection that writes, and several that only read.
func openPostgres(ctx context.Context, url string) (w, r *sql.DB, err error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, nil, tgr.Errorf("store.open", tgr.Invalid, "the address of the database: %w", err)
	}
	setDefault := func(name, value string) {
		if _, ok := cfg.RuntimeParams[name]; !ok {
			cfg.RuntimeParams[name] = value
		}
	}
	setDefault("application_name", "tgr")
	setDefault("jit", "off") // it compiles for a second what runs for a millisecond
	setDefault("statement_timeout", fmt.Sprint(writeWithin.Milliseconds()))
	// A server that was stopped in the middle of a transaction must not keep the others from writing.
	setDefault("idle_in_transaction_session_timeout", fmt.Sprint(writeWithin.Milliseconds()))
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	w = stdlib.OpenDB(*cfg)
	w.SetMaxOpenConns(1)
	if err := w.PingContext(ctx); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open the database %s at %s: %w", cfg.Database, cfg.Host, err), w.Close())
	}
	reading := cfg.Copy()
	reading.RuntimeParams["default_transaction_read_only"] = "on"
	r = stdlib.OpenDB(*reading)
	r.SetMaxOpenConns(readers)
	r.SetMaxIdleConns(readers)
	return w, r, nil
}
