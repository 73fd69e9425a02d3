// Package vault keeps secrets and variables: names and limits as GitHub has them, secrets sealed with a key that is not
// in the database, and the answer to what a job may see.
//
// https://docs.github.com/en/actions/reference/security/secrets
package vault

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// GitHub's limits.
const (
	MaxValue = 48 << 10 // bytes of a secret or a variable

	maxOfAccount      = 1000
	maxSecretsOfRepo  = 100
	maxVarsOfRepo     = 500
	maxOfEnvironment  = 100
	maxName           = 255
	maxVariablesOfRun = 256 << 10 // bytes of an account's and a repository's variables together
)

var namePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Vault is safe for concurrent use. Create one with Open.
type Vault struct {
	store *store.Store
	repo  func(ctx context.Context, fullName string) (int64, error)
	file  string

	mu   sync.RWMutex // held for writing while keys change
	keys []key        // the first one seals
}

// Config is what a Vault is made of. All fields are required.
type Config struct {
	Store   *store.Store
	KeyFile string // made, with a new key, if it is not there and there are no secrets yet
	// Repo is the id of a repository, an error of [tgr.NotFound] if there is none. A setting belongs to the id: who
	// takes over a name does not get what was set for it.
	Repo func(ctx context.Context, fullName string) (int64, error)
}

// CheckName refuses names that GitHub would refuse.
func CheckName(name string) error {
	switch {
	case name == "" || len(name) > maxName:
		return tgr.Errorf("vault.name", tgr.Invalid, "a name has 1 to %d characters", maxName)
	case !namePattern.MatchString(name):
		return tgr.Errorf("vault.name", tgr.Invalid, "the name %.60q may have only letters, digits and _, and must not begin with a digit", name)
	case strings.HasPrefix(strings.ToUpper(name), "GITHUB_"):
		return tgr.Errorf("vault.name", tgr.Invalid, "the name %s begins with GITHUB_, which is reserved", name)
	}
	return nil
}

// key is the stored name of a scope.
func (v *Vault) key(ctx context.Context, kind string, s tgr.Scope) (store.SettingKey, error) {
	k := store.SettingKey{Kind: kind, Environment: s.Environment}
	switch {
	case s.Owner != "" && s.Repo == "" && s.Environment == "" && !strings.Contains(s.Owner, "/"):
		k.Owner = s.Owner
		return k, nil
	case s.Owner != "" || s.Repo == "":
		return k, tgr.Errorf("vault.scope", tgr.Invalid, "expected an account, or a repository, or an environment of a repository")
	}
	id, err := v.repo(ctx, s.Repo)
	k.RepoID = id
	return k, err
}

func limitOf(k store.SettingKey) int {
	switch {
	case k.Owner != "":
		return maxOfAccount
	case k.Environment != "":
		return maxOfEnvironment
	case k.Kind == store.Secret:
		return maxSecretsOfRepo
	}
	return maxVarsOfRepo
}

// SetSecret stores a secret, sealed.
func (v *Vault) SetSecret(ctx context.Context, s tgr.Scope, name, value string) error {
	return v.set(ctx, store.Secret, s, name, value)
}

// SetVariable stores a variable.
func (v *Vault) SetVariable(ctx context.Context, s tgr.Scope, name, value string) error {
	return v.set(ctx, store.Variable, s, name, value)
}

func (v *Vault) set(ctx context.Context, kind string, s tgr.Scope, name, value string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	switch {
	case value == "":
		return tgr.Errorf("vault.set", tgr.Invalid, "the value of %s is empty", name)
	case len(value) > MaxValue:
		return tgr.Errorf("vault.set", tgr.Invalid, "the value of %s has %d bytes, and may have %d", name, len(value), MaxValue)
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		return tgr.Errorf("vault.set", tgr.Invalid, "the value of %s is not text: encode it first, for example with base64", name)
	}
	k, err := v.key(ctx, kind, s)
	if err != nil {
		return err
	}
	k.Name = strings.ToUpper(name)
	k.Owner, k.Environment = strings.ToLower(k.Owner), strings.ToLower(k.Environment)
	// The lock is held until it is stored: else a rotation could pass between, and drop the key.
	v.mu.RLock()
	defer v.mu.RUnlock()
	data := []byte(value)
	if kind == store.Secret {
		if data, err = v.keys[0].seal(k, data); err != nil {
			return err
		}
	}
	return v.store.PutSetting(ctx, store.SettingRow{SettingKey: k, Repo: s.Repo, Value: data}, limitOf(k))
}

// RemoveSecret removes a secret, or returns an error of [tgr.NotFound].
func (v *Vault) RemoveSecret(ctx context.Context, s tgr.Scope, name string) error {
	return v.remove(ctx, store.Secret, s, name)
}

// RemoveVariable removes a variable, or returns an error of [tgr.NotFound].
func (v *Vault) RemoveVariable(ctx context.Context, s tgr.Scope, name string) error {
	return v.remove(ctx, store.Variable, s, name)
}

func (v *Vault) remove(ctx context.Context, kind string, s tgr.Scope, name string) error {
	k, err := v.key(ctx, kind, s)
	if err != nil {
		return err
	}
	k.Name = name
	return v.store.DeleteSetting(ctx, k)
}

// Secrets lists the secrets of exactly one scope by name, without their values.
func (v *Vault) Secrets(ctx context.Context, s tgr.Scope) ([]tgr.Setting, error) {
	return v.list(ctx, store.Secret, s)
}

// Variables lists the variables of exactly one scope by name.
func (v *Vault) Variables(ctx context.Context, s tgr.Scope) ([]tgr.Setting, error) {
	return v.list(ctx, store.Variable, s)
}

func (v *Vault) list(ctx context.Context, kind string, s tgr.Scope) ([]tgr.Setting, error) {
	k, err := v.key(ctx, kind, s)
	if err != nil {
		return nil, err
	}
	rows, err := v.store.Settings(ctx, k)
	out := make([]tgr.Setting, 0, len(rows))
	for _, r := range rows {
		set := tgr.Setting{Scope: s, Name: r.Name, Updated: r.Updated}
		if kind == store.Variable {
			set.Value = string(r.Value)
		}
		out = append(out, set)
	}
	return out, err
}

// SecretsOf are the secrets of a repository and its account, or those of an environment alone where that is not "".
func (v *Vault) SecretsOf(ctx context.Context, repo tgr.Repo, environment string) (map[string]string, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.of(ctx, store.Secret, repo, environment, func(r store.SettingRow) (string, error) {
		data, err := v.open(r)
		return string(data), err
	})
}

// VariablesOf are the variables, likewise. Of an account's and a repository's, those that fit into 256 KiB are
// given, as at GitHub: in the order of their names, the repository's first.
func (v *Vault) VariablesOf(ctx context.Context, repo tgr.Repo, environment string) (map[string]string, error) {
	return v.of(ctx, store.Variable, repo, environment, func(r store.SettingRow) (string, error) { return string(r.Value), nil })
}

func (v *Vault) of(ctx context.Context, kind string, repo tgr.Repo, environment string, value func(store.SettingRow) (string, error)) (map[string]string, error) {
	out := map[string]string{}
	owner, _, _ := strings.Cut(repo.FullName, "/")
	scopes := []store.SettingKey{{Kind: kind, RepoID: repo.ID}, {Kind: kind, Owner: owner}}
	if environment != "" {
		scopes = []store.SettingKey{{Kind: kind, RepoID: repo.ID, Environment: environment}}
	}
	room := maxVariablesOfRun
	for _, k := range scopes {
		rows, err := v.store.Settings(ctx, k)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			if _, narrower := out[r.Name]; narrower {
				continue
			}
			if kind == store.Variable {
				if room -= len(r.Name) + len(r.Value); room < 0 {
					break
				}
			}
			if out[r.Name], err = value(r); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// errKey says that no key of the file opens a secret.
var errKey = errors.New("no key of the file opens it: it was sealed with another key, or was changed")
