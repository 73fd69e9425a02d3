package results

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver
)

//go:embed schema.sql
var schema string

// schemaVersion is PRAGMA user_version of a database with this schema.
const schemaVersion = 1

// States and kinds of blobs.
const (
	open   = "open"
	sealed = "sealed"
	done   = "done"

	cacheKind    = "cache"
	artifactKind = "artifact"
)

// blob is a cache or an artifact, finished or not.
type blob struct {
	id                  int64
	kind, state         string
	repo, repoName      string
	run, attempt, job   int64
	trusted             bool
	scope, name         string
	version, mime       string
	size                int64
	digest              string
	created, used, ends time.Time // ends: zero if it does not expire
}

// part is one piece of a blob.
type part struct {
	block, hash string
	seq         int
	size        int64
	stored      bool
}

// meta is the database. Writers wait for one another, also those of other processes.
type meta struct{ w, r *sql.DB }

func openMeta(ctx context.Context, path string) (*meta, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return nil, err
	}
	// Without an fsync per transaction a power cut may lose the last ones, as it loses the last uploads; it damages
	// nothing.
	file := (&url.URL{Scheme: "file", Path: path}).String()
	w, err := sql.Open("sqlite", file+"?_txlock=immediate&_pragma=busy_timeout(30000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(1)")
	if err != nil {
		return nil, err
	}
	w.SetMaxOpenConns(1)
	r, err := sql.Open("sqlite", file+"?mode=ro&_pragma=busy_timeout(30000)&_pragma=query_only(1)")
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	r.SetMaxOpenConns(4)
	r.SetMaxIdleConns(4)
	m := &meta{w: w, r: r}
	if err := m.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), m.close())
	}
	return m, nil
}

func (m *meta) migrate(ctx context.Context) error {
	return m.write(ctx, func(t *tx) error {
		var v int
		if err := t.row("PRAGMA user_version").Scan(&v); err != nil {
			return err
		}
		switch v {
		case schemaVersion:
			return nil
		case 0:
			return errors.Join(t.exec(schema), t.exec(fmt.Sprintf("PRAGMA user_version = %d", schemaVersion)))
		}
		return fmt.Errorf("schema %d is newer than this program, which knows %d", v, schemaVersion)
	})
}

func (m *meta) close() error { return errors.Join(m.r.Close(), m.w.Close()) }

// tx is a transaction that may write. Its ctx lives as long.
type tx struct {
	ctx context.Context
	tx  *sql.Tx
}

// write runs f in a transaction of its own, which no other one overlaps.
func (m *meta) write(ctx context.Context, f func(*tx) error) error {
	t, err := m.w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer t.Rollback()
	if err := f(&tx{ctx, t}); err != nil {
		return err
	}
	return t.Commit()
}

func (t *tx) exec(query string, args ...any) error {
	_, err := t.tx.ExecContext(t.ctx, query, args...)
	return err
}

func (t *tx) row(query string, args ...any) *sql.Row {
	return t.tx.QueryRowContext(t.ctx, query, args...)
}

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

const blobColumns = "id, kind, state, repo, repo_name, run, attempt, job, trusted, scope, name, version, mime, size, digest, created, used, expires"

// find returns the blobs that the clauses behind FROM blobs yield.
func find(ctx context.Context, q querier, clauses string, args ...any) ([]blob, error) {
	rows, err := q.QueryContext(ctx, "SELECT "+blobColumns+" FROM blobs "+clauses, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []blob
	for rows.Next() {
		var b blob
		var created, used, ends int64
		if err := rows.Scan(&b.id, &b.kind, &b.state, &b.repo, &b.repoName, &b.run, &b.attempt, &b.job, &b.trusted, &b.scope,
			&b.name, &b.version, &b.mime, &b.size, &b.digest, &created, &used, &ends); err != nil {
			return nil, err
		}
		b.created, b.used = time.UnixMicro(created).UTC(), time.UnixMicro(used).UTC()
		if ends > 0 {
			b.ends = time.UnixMicro(ends).UTC()
		}
		list = append(list, b)
	}
	return list, rows.Err()
}

// one is find for at most one blob; nil is none.
func one(ctx context.Context, q querier, clauses string, args ...any) (*blob, error) {
	list, err := find(ctx, q, clauses+" LIMIT 1", args...)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}

// parts returns the parts of a blob in their order.
func parts(ctx context.Context, q querier, id int64) ([]part, error) {
	rows, err := q.QueryContext(ctx, "SELECT block, seq, hash, size, stored FROM parts WHERE blob = ? ORDER BY seq, block", id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []part
	for rows.Next() {
		var p part
		if err := rows.Scan(&p.block, &p.seq, &p.hash, &p.size, &p.stored); err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, rows.Err()
}

// stale lists what has expired and the uploads that were begun before since.
func (m *meta) stale(ctx context.Context, now, since time.Time) ([]blob, error) {
	return find(ctx, m.r, "WHERE expires > 0 AND expires <= ? OR state <> 'done' AND created <= ?", now.UnixMicro(), since.UnixMicro())
}

// sentBy is how many bytes a job has sent that are still here.
func (m *meta) sentBy(ctx context.Context, job int64) (n int64, err error) {
	err = m.r.QueryRowContext(ctx, "SELECT coalesce(sum(parts.size), 0) FROM blobs JOIN parts ON blob = id WHERE job = ?", job).Scan(&n)
	return n, err
}

// insert begins a blob and returns its id.
func (t *tx) insert(b *blob) (int64, error) {
	var ends int64
	if !b.ends.IsZero() {
		ends = b.ends.UnixMicro()
	}
	res, err := t.tx.ExecContext(t.ctx, `INSERT INTO blobs (kind, state, repo, repo_name, run, attempt, job, trusted, scope, name, version, mime, created, used, expires)
		VALUES (?, 'open', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		b.kind, b.repo, b.repoName, b.run, b.attempt, b.job, b.trusted, b.scope, b.name, b.version, b.mime, b.created.UnixMicro(), b.used.UnixMicro(), ends)
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// replace puts a part into a blob, and returns what was there under its name.
func (t *tx) replace(id int64, p part) ([]part, error) {
	var old []part
	var hash string
	switch err := t.row("SELECT hash FROM parts WHERE blob = ? AND block = ?", id, p.block).Scan(&hash); {
	case err == nil:
		old = []part{{hash: hash}}
	case !errors.Is(err, sql.ErrNoRows):
		return nil, err
	}
	return old, t.exec("INSERT OR REPLACE INTO parts (blob, block, hash, size) VALUES (?, ?, ?, ?)", id, p.block, p.hash, p.size)
}

// drop removes a blob and returns the hashes that no part has any more.
func (t *tx) drop(id int64) ([]string, error) {
	list, err := parts(t.ctx, t.tx, id)
	if err != nil {
		return nil, err
	}
	if err := t.exec("DELETE FROM blobs WHERE id = ?", id); err != nil {
		return nil, err
	}
	return t.unused(list)
}

// dropParts removes parts of a blob, and returns the hashes that no part has any more.
func (t *tx) dropParts(id int64, list []part) ([]string, error) {
	for _, p := range list {
		if err := t.exec("DELETE FROM parts WHERE blob = ? AND block = ?", id, p.block); err != nil {
			return nil, err
		}
	}
	return t.unused(list)
}

// unused returns the hashes of removed parts that no other part has.
func (t *tx) unused(removed []part) ([]string, error) {
	seen := map[string]bool{}
	var gone []string
	for _, p := range removed {
		if seen[p.hash] {
			continue
		}
		seen[p.hash] = true
		var n int
		if err := t.row("SELECT EXISTS (SELECT 1 FROM parts WHERE hash = ?)", p.hash).Scan(&n); err != nil {
			return nil, err
		}
		if n == 0 {
			gone = append(gone, p.hash)
		}
	}
	return gone, nil
}

// isUnique reports whether an error says that there is such a blob already.
func isUnique(err error) bool {
	return err != nil && strings.Contains(err.Error(), "UNIQUE constraint failed")
}
