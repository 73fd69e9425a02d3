package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"database/sql"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"github.com/terraphim/tgr"
)

//go:embed migrations
var migrations embed.FS

// dialect is what differs between databases. The SQL itself keeps to what SQLite and PostgreSQL share: $1, ON
// CONFLICT, RETURNING, partial indexes, savepoints.
type dialect struct {
	name        goose.Dialect
	folder      string                             // of its migrations
	unavailable func(error) bool                   // the database does not answer, or has no room: trying again may help
	broken      func(error) bool                   // the connection is no more: another one may do
	begin       string                             // each write transaction's first statement; "": none
	limit       time.Duration                      // of a write transaction; 0: none
	arg         func(any) any                      // what a value is to the database; nil: itself
	locker      func() (lock.SessionLocker, error) // keeps servers that start at once from migrating at once; nil: not needed
}

// args makes of values what they are to the database.
func (d dialect) args(values []any) []any {
	if d.arg != nil {
		for i, v := range values {
			values[i] = d.arg(v)
		}
	}
	return values
}

// reader is the pool of connections that read.
type reader struct {
	*sql.DB
	d dialect
}

// QueryContext is sql.DB's. Connections that have broken since they were last used are passed over.
func (r reader) QueryContext(ctx context.Context, query string, args ...any) (rows *sql.Rows, err error) {
	args = r.d.args(args)
	r.unbroken(ctx, func() error {
		rows, err = r.DB.QueryContext(ctx, query, args...)
		return err
	})
	return rows, err
}

// QueryRowContext is sql.DB's, with connections as for QueryContext.
func (r reader) QueryRowContext(ctx context.Context, query string, args ...any) (row *sql.Row) {
	args = r.d.args(args)
	r.unbroken(ctx, func() error {
		row = r.DB.QueryRowContext(ctx, query, args...)
		return row.Err()
	})
	return row
}

// unbroken calls read until it has had a connection that works, or all that were kept.
func (r reader) unbroken(ctx context.Context, read func() error) {
	for range readers + 1 {
		if err := read(); err == nil || ctx.Err() != nil || !r.d.broken(err) {
			return
		}
	}
}

// migrate brings the schema of db up to date.
func (d dialect) migrate(ctx context.Context, db *sql.DB, log *slog.Logger) error {
	dir, err := fs.Sub(migrations, d.folder)
	if err != nil {
		return err
	}
	options := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger())}
	if d.locker != nil {
		locker, err := d.locker()
		if err != nil {
			return err
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	p, err := goose.NewProvider(d.name, db, dir, options...)
	if err != nil {
		return err
	}
	have, known, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if have > known {
		return tgr.Errorf("store.open", tgr.Conflict, "the database has schema %d, and this program knows only %d: it is older than the one that wrote it", have, known)
	}
	done, err := p.Up(ctx)
	if err != nil {
		return fmt.Errorf("bring the schema from %d to %d: %w", have, known, err)
	}
	for _, m := range done {
		log.Info("schema migrated", "version", m.Source.Version, "took", m.Duration)
	}
	return nil
}

// fault turns an error of the database into one that may cross the room's boundary.
func (d dialect) fault(op string, err error) error {
	var known *tgr.Error
	if err == nil || errors.As(err, &known) || errors.Is(err, ErrNothing) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	e := &tgr.Error{Op: "store." + op, Code: tgr.Internal, Message: "the database failed", Err: err}
	if d.unavailable(err) {
		e.Code, e.Message = tgr.Unavailable, "the database does not answer"
	}
	return e
}
