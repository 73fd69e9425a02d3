package learn

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	_ "modernc.org/sqlite" // the driver
)

// version is that of the state: what is learnt, and how it is written. Another one is learnt again.
const version = 2

// The state is rows of JSON, each of one thing of one kind; kinds and keys are the fold's own.
const schema = `
CREATE TABLE IF NOT EXISTS state (
  space TEXT NOT NULL, -- the repository's number, with /forks for what its forks taught
  kind  TEXT NOT NULL,
  key   TEXT NOT NULL,
  data  TEXT NOT NULL,
  PRIMARY KEY (space, kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursor (
  id  INTEGER PRIMARY KEY CHECK (id = 1),
  seq INTEGER NOT NULL -- of the last record that was learnt from
);`

// openDB opens the database at path. It loses no more than the last moments in a power failure, which the log makes good.
func openDB(ctx context.Context, path string) (*sql.DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	f.Close()
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path}).String()+"?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(2)
	have := 0
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", path, err), db.Close())
	}
	if have != version && have != 0 {
		if _, err := db.ExecContext(ctx, "DROP TABLE IF EXISTS state; DROP TABLE IF EXISTS cursor"); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	if _, err := db.ExecContext(ctx, fmt.Sprintf("%s; PRAGMA user_version = %d", schema, version)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func readCursor(ctx context.Context, db *sql.DB) (seq int64, err error) {
	if err = db.QueryRowContext(ctx, "SELECT seq FROM cursor").Scan(&seq); errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return seq, err
}

// dbRow is one row; Data nil: it is to go.
type dbRow struct {
	space string
	rowKey
	data []byte
}

// changed are the rows that changed since the last flush. l.mu is held.
func (l *Learner) changed() ([]dbRow, int64, error) {
	var rows []dbRow
	for name, sp := range l.spaces {
		for key := range sp.dirty {
			row := dbRow{space: name, rowKey: key}
			if v := sp.row(key); v != nil {
				var err error
				if row.data, err = json.Marshal(v); err != nil {
					return nil, 0, fmt.Errorf("encode %s %q: %w", key.kind, key.key, err)
				}
			}
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b dbRow) int { // neighbours share pages
		return cmp.Or(cmp.Compare(a.space, b.space), cmp.Compare(a.kind, b.kind), cmp.Compare(a.key, b.key))
	})
	return rows, l.cursor, nil
}

// writeRows writes rows and the cursor in one transaction.
func writeRows(ctx context.Context, db *sql.DB, rows []dbRow, cursor int64) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	put, err := tx.PrepareContext(ctx, "INSERT INTO state (space, kind, key, data) VALUES ($1, $2, $3, $4) ON CONFLICT (space, kind, key) DO UPDATE SET data = excluded.data")
	if err != nil {
		return err
	}
	defer put.Close()
	for _, r := range rows {
		if r.data == nil {
			_, err = tx.ExecContext(ctx, "DELETE FROM state WHERE space = $1 AND kind = $2 AND key = $3", r.space, r.kind, r.key)
		} else {
			_, err = put.ExecContext(ctx, r.space, r.kind, r.key, string(r.data))
		}
		if err != nil {
			return fmt.Errorf("write %s %q: %w", r.kind, r.key, err)
		}
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO cursor (id, seq) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET seq = excluded.seq", cursor); err != nil {
		return err
	}
	return tx.Commit()
}

func wipe(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, "DELETE FROM state; DELETE FROM cursor")
	return err
}

// loadSpace fills sp with the rows of a space, if there are any.
func loadSpace(ctx context.Context, db *sql.DB, name string, sp *space) (*space, error) {
	rows, err := db.QueryContext(ctx, "SELECT kind, key, data FROM state WHERE space = $1", name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var key rowKey
		var data []byte
		if err := rows.Scan(&key.kind, &key.key, &data); err != nil {
			return nil, err
		}
		if err := sp.load(key, data); err != nil {
			return nil, fmt.Errorf("stored %s %q of %s: %w", key.kind, key.key, name, err)
		}
	}
	sp.loaded()
	return sp, rows.Err()
}

// spaceHead is the head of a stored space.
type spaceHead struct {
	space string
	head
}

func readHeads(ctx context.Context, db *sql.DB) ([]spaceHead, error) {
	rows, err := db.QueryContext(ctx, "SELECT space, data FROM state WHERE kind = $1 ORDER BY space", kindHead)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []spaceHead
	for rows.Next() {
		var h spaceHead
		var data []byte
		if err := rows.Scan(&h.space, &data); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, &h.head); err != nil {
			return nil, fmt.Errorf("stored head of %s: %w", h.space, err)
		}
		out = append(out, h)
	}
	return out, rows.Err()
}

// Dump writes the whole state as text, a line for each row, in an order that depends on nothing else.
func (l *Learner) Dump(ctx context.Context, w io.Writer) error {
	rows, err := l.db.QueryContext(ctx, "SELECT space, kind, key, data FROM state UNION ALL SELECT '', 'cursor', '', seq FROM cursor ORDER BY 1, 2, 3")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var space, kind, key, data string
		if err := rows.Scan(&space, &kind, &key, &data); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s %s %q %s\n", space, kind, key, data); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Digest is the SHA-256 of what Dump writes.
func (l *Learner) Digest(ctx context.Context) (string, error) {
	h := sha256.New()
	if err := l.Dump(ctx, h); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
