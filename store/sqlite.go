package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/terraphim/tgr"
)

// readers is how many reads run at once.
const readers = 4

// sqliteDialect is SQLite's.
func sqliteDialect() dialect {
	return dialect{name: goose.DialectSQLite3, folder: "migrations/sqlite", broken: func(error) bool { return false }, unavailable: func(err error) bool {
		var e *sqlite.Error
		if !errors.As(err, &e) {
			return false
		}
		switch e.Code() & 0xff { // extended codes carry the primary one in the low byte
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY:
			return true
		}
		return false
	}}
}

// openSQLite opens path twice: one connection that writes, and several that can only read. Every pragma is in the
// data source name, because one that is executed reaches a single connection of a pool. Transactions
// begin IMMEDIATE: one that reads before it writes would fail with BUSY_SNAPSHOT, which no time-out helps.
func openSQLite(ctx context.Context, path string) (w, r *sql.DB, err error) {
	if path == "" || strings.Contains(path, ":memory:") {
		return nil, nil, tgr.Errorf("store.open", tgr.Invalid, "a database needs a file: %q would not outlive the process", path)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // SQLite gives -wal and -shm the same mode
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return nil, nil, err
	}
	file := (&url.URL{Scheme: "file", Path: path}).String()
	w, err = sql.Open("sqlite", file+"?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)")
	if err != nil {
		return nil, nil, err
	}
	w.SetMaxOpenConns(1)
	if err := w.PingContext(ctx); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open %s: %w", path, err), w.Close())
	}
	r, err = sql.Open("sqlite", file+"?mode=ro&_pragma=busy_timeout(5000)&_pragma=query_only(1)")
	if err != nil {
		return nil, nil, errors.Join(err, w.Close())
	}
	r.SetMaxOpenConns(readers)
	r.SetMaxIdleConns(readers)
	return w, r, nil
}
