package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// The kinds of settings.
const (
	Secret   = "secret"
	Variable = "variable"
)

// SettingKey names a setting. Owner or RepoID is set, not both.
type SettingKey struct {
	Kind        string // Secret or Variable
	Owner       string // an account
	RepoID      int64
	Environment string // with RepoID
	Name        string
}

// normal is k as it is stored.
func (k SettingKey) normal() SettingKey {
	k.Owner, k.Environment, k.Name = strings.ToLower(k.Owner), strings.ToLower(k.Environment), strings.ToUpper(k.Name)
	return k
}

// SettingRow is a stored setting. Its key is in the case in which it is stored.
type SettingRow struct {
	SettingKey
	Repo    string // the repository's full name when it was set
	Value   []byte // of a secret sealed
	Updated time.Time
}

// PutSetting adds a setting, or replaces it. One more than limit of its kind and scope is refused with [tgr.Limit].
func (s *Store) PutSetting(ctx context.Context, r SettingRow, limit int) error {
	k := r.normal()
	return s.write(ctx, "put setting", func(t *tx) error {
		var others int
		err := t.QueryRow("SELECT COUNT(*) FROM settings WHERE kind = $1 AND owner = $2 AND repo_id = $3 AND environment = $4 AND name <> $5",
			k.Kind, k.Owner, k.RepoID, k.Environment, k.Name).Scan(&others)
		if err != nil {
			return err
		}
		if others >= limit {
			return tgr.Errorf("store.setting", tgr.Limit, "there are %d %ss already, and may be %d", others, k.Kind, limit)
		}
		_, err = t.Exec(`INSERT INTO settings (kind, owner, repo_id, environment, name, repo, value, updated) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (kind, owner, repo_id, environment, name) DO UPDATE SET value = $7, repo = $6, updated = $8`,
			k.Kind, k.Owner, k.RepoID, k.Environment, k.Name, r.Repo, r.Value, nanos(t.now))
		return err
	})
}

// DeleteSetting removes a setting, or returns an error of [tgr.NotFound].
func (s *Store) DeleteSetting(ctx context.Context, key SettingKey) error {
	k := key.normal()
	return s.write(ctx, "delete setting", func(t *tx) error {
		res, err := t.Exec("DELETE FROM settings WHERE kind = $1 AND owner = $2 AND repo_id = $3 AND environment = $4 AND name = $5",
			k.Kind, k.Owner, k.RepoID, k.Environment, k.Name)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(tgr.Errorf("store.setting", tgr.NotFound, "there is no %s %s there", k.Kind, k.Name), err)
		}
		return nil
	})
}

// Settings lists the settings of a kind and of exactly one scope, by name.
func (s *Store) Settings(ctx context.Context, scope SettingKey) ([]SettingRow, error) {
	k := scope.normal()
	rows, err := settings(ctx, s.r, "WHERE kind = $1 AND owner = $2 AND repo_id = $3 AND environment = $4 ORDER BY name", k.Kind, k.Owner, k.RepoID, k.Environment)
	return rows, s.dialect.fault("settings", err)
}

func settings(ctx context.Context, q querier, tail string, args ...any) ([]SettingRow, error) {
	rows, err := q.QueryContext(ctx, "SELECT kind, owner, repo_id, environment, name, repo, value, updated FROM settings "+tail, args...)
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	defer rows.Close()
	var out []SettingRow
	for rows.Next() {
		var r SettingRow
		var updated int64
		if err := rows.Scan(&r.Kind, &r.Owner, &r.RepoID, &r.Environment, &r.Name, &r.Repo, &r.Value, &updated); err != nil {
			return nil, fmt.Errorf("read settings: %w", err)
		}
		r.Updated = moment(updated)
		out = append(out, r)
	}
	return out, rows.Err()
}

// Reseal replaces the value of every secret by what fn makes of it, in one transaction: all or none. It returns how many.
// fn must be quick and must not call the store.
func (s *Store) Reseal(ctx context.Context, fn func(SettingRow) ([]byte, error)) (int, error) {
	n := 0
	err := s.write(ctx, "reseal", func(t *tx) error {
		rows, err := settings(context.Background(), t, "WHERE kind = 'secret'")
		if err != nil {
			return err
		}
		for _, r := range rows {
			value, err := fn(r)
			if err != nil {
				return err
			}
			if err := t.exec("reseal "+r.Name, "UPDATE settings SET value = $1 WHERE kind = $2 AND owner = $3 AND repo_id = $4 AND environment = $5 AND name = $6",
				value, r.Kind, r.Owner, r.RepoID, r.Environment, r.Name); err != nil {
				return err
			}
		}
		n = len(rows)
		return nil
	})
	return n, err
}

// PutEnvironment describes an environment of a repository, or describes it anew.
func (s *Store) PutEnvironment(ctx context.Context, repo int64, e tgr.Environment) error {
	rules, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return s.write(ctx, "put environment", func(t *tx) error {
		var others int
		if err := t.QueryRow("SELECT COUNT(*) FROM environments WHERE repo_id = $1 AND name <> $2", repo, strings.ToLower(e.Name)).Scan(&others); err != nil {
			return err
		}
		if others >= maxEnvironments {
			return tgr.Errorf("store.environment", tgr.Limit, "%s has %d environments already", e.Repo, others)
		}
		_, err := t.Exec(`INSERT INTO environments (repo_id, name, rules) VALUES ($1, $2, $3)
			ON CONFLICT (repo_id, name) DO UPDATE SET rules = $3`, repo, strings.ToLower(e.Name), string(rules))
		return err
	})
}

// maxEnvironments is how many environments of a repository may be described.
const maxEnvironments = 1000

// DeleteEnvironment forgets an environment with its secrets and variables, or returns an error of [tgr.NotFound].
func (s *Store) DeleteEnvironment(ctx context.Context, repo int64, name string) error {
	name = strings.ToLower(name)
	return s.write(ctx, "delete environment", func(t *tx) error {
		gone, err := t.Exec("DELETE FROM environments WHERE repo_id = $1 AND name = $2", repo, name)
		if err != nil {
			return err
		}
		settings, err := t.Exec("DELETE FROM settings WHERE repo_id = $1 AND environment = $2", repo, name)
		if err != nil {
			return err
		}
		n, err1 := gone.RowsAffected()
		m, err2 := settings.RowsAffected()
		if n+m == 0 {
			return errors.Join(tgr.Errorf("store.environment", tgr.NotFound, "there is no environment %s there", name), err1, err2)
		}
		return errors.Join(err1, err2)
	})
}

// Environments lists what is known of a repository's environments, by name.
func (s *Store) Environments(ctx context.Context, repo int64) ([]tgr.Environment, error) {
	list, err := environments(ctx, s.r, "WHERE repo_id = $1 ORDER BY name", repo)
	return list, s.dialect.fault("environments", err)
}

// Environment is what is known of an environment; one of which nothing is known asks for nothing.
func (s *Store) Environment(ctx context.Context, repo int64, name string) (tgr.Environment, error) {
	list, err := environments(ctx, s.r, "WHERE repo_id = $1 AND name = $2", repo, strings.ToLower(name))
	if err != nil || len(list) == 0 {
		return tgr.Environment{Name: name}, s.dialect.fault("environment", err)
	}
	return list[0], nil
}

func environments(ctx context.Context, q querier, tail string, args ...any) ([]tgr.Environment, error) {
	rows, err := q.QueryContext(ctx, "SELECT rules FROM environments "+tail, args...)
	if err != nil {
		return nil, fmt.Errorf("read environments: %w", err)
	}
	defer rows.Close()
	var out []tgr.Environment
	for rows.Next() {
		var rules string
		var e tgr.Environment
		if err := rows.Scan(&rules); err != nil {
			return nil, fmt.Errorf("read environments: %w", err)
		}
		if err := decode("rules of an environment", rules, &e); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

// RepoID is the id of a repository of which a webhook has arrived, by the name that it had last; 0 if none has.
func (s *Store) RepoID(ctx context.Context, fullName string) (int64, error) {
	var id int64
	err := s.r.QueryRowContext(ctx, "SELECT repo_id FROM runs WHERE LOWER(repo) = LOWER($1) ORDER BY id DESC LIMIT 1", fullName).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return id, s.dialect.fault("repository", err)
}
