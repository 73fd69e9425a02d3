package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"database/sql"

	"github.com/pressly/goose/v3"
	"github.com/terraphim/tgr"
)

//go:embed migrations
var migrations embed.FS

// dialect is what differs between databases. The SQL itself keeps to what SQLite and PostgreSQL share: $1, ON
// CONFLICT, RETURNING, partial indexes, savepoints.
type dialect struct {
	name        goose.Dialect
	folder      string           // of its migrations
	unavailable func(error) bool // the database does not answer, or has no room: trying again may help
}

// migrate brings the schema of db up to date.
func (d dialect) migrate(ctx context.Context, db *sql.DB, log *slog.Logger) error {
	dir, err := fs.Sub(migrations, d.folder)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(d.name, db, dir, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
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
