package vault

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/store"
)

// room is a vault with its files.
type room struct {
	*Vault
	t    *testing.T
	dir  string
	c    Config
	repo tgr.Repo
}

func open(t *testing.T) *room {
	t.Helper()
	r := &room{t: t, dir: t.TempDir(), repo: tgr.Repo{ID: 7, FullName: "Ada/Engine"}}
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(r.dir, "tgr.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r.c = Config{Store: s, KeyFile: filepath.Join(r.dir, "secrets.key"), Repo: func(_ context.Context, name string) (int64, error) {
		switch strings.ToLower(name) {
		case "ada/engine":
			return 7, nil
		case "eve/engine":
			return 8, nil
		}
		return 0, tgr.Errorf("repo", tgr.NotFound, "there is no repository %s", name)
	}}
	r.again()
	return r
}

func (r *room) again() {
	r.t.Helper()
	v, err := Open(r.t.Context(), r.c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Vault = v
}

func (r *room) set(s tgr.Scope, name, value string) {
	r.t.Helper()
	if err := errors.Join(r.SetSecret(r.t.Context(), s, name, value), r.SetVariable(r.t.Context(), s, name, value)); err != nil {
		r.t.Fatal(err)
	}
}

// sees checks both what secrets and what variables a job gets.
func (r *room) sees(repo tgr.Repo, environment string, want map[string]string) {
	r.t.Helper()
	for what, of := range map[string]func(context.Context, tgr.Repo, string) (map[string]string, error){"secrets": r.SecretsOf, "variables": r.VariablesOf} {
		got, err := of(r.t.Context(), repo, environment)
		if err != nil {
			r.t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			r.t.Errorf("%s of %s, environment %q (-want +got):\n%s", what, repo.FullName, environment, diff)
		}
	}
}

// The narrower scope wins, names do not differ by case, and who took over a repository's name gets nothing of it.
func TestPrecedence(t *testing.T) {
	r := open(t)
	r.set(tgr.Scope{Owner: "ada"}, "everywhere", "account")
	r.set(tgr.Scope{Owner: "ADA"}, "A", "account")
	r.set(tgr.Scope{Repo: "ada/engine"}, "a", "repository")
	r.set(tgr.Scope{Repo: "ada/engine"}, "B", "repository")
	r.set(tgr.Scope{Repo: "ADA/ENGINE", Environment: "Prod"}, "b", "environment")
	r.set(tgr.Scope{Repo: "eve/engine"}, "A", "another repository")
	r.sees(r.repo, "", map[string]string{"EVERYWHERE": "account", "A": "repository", "B": "repository"})
	r.sees(r.repo, "PROD", map[string]string{"B": "environment"})
	r.sees(r.repo, "staging", map[string]string{})
	r.sees(tgr.Repo{ID: 99, FullName: "ada/engine"}, "", map[string]string{"EVERYWHERE": "account", "A": "account"})
	r.sees(tgr.Repo{ID: 99, FullName: "ada/engine"}, "prod", map[string]string{})
	r.sees(tgr.Repo{ID: 7, FullName: "ada/renamed"}, "", map[string]string{"EVERYWHERE": "account", "A": "repository", "B": "repository"})

	list, err := r.Secrets(t.Context(), tgr.Scope{Repo: "ada/engine"})
	if err != nil || len(list) != 2 || list[0].Name != "A" || list[0].Value != "" || list[0].Updated.IsZero() {
		t.Errorf("the list of secrets is %+v, %v", list, err)
	}
	if list, err = r.Variables(t.Context(), tgr.Scope{Owner: "ada"}); err != nil || len(list) != 2 || list[1].Value != "account" {
		t.Errorf("the list of variables is %+v, %v", list, err)
	}
	if err := r.RemoveSecret(t.Context(), tgr.Scope{Repo: "ada/engine"}, "a"); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveSecret(t.Context(), tgr.Scope{Repo: "ada/engine"}, "a"); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	got, err := r.SecretsOf(t.Context(), r.repo, "")
	if err != nil || got["A"] != "account" {
		t.Errorf("without the repository's, A is %q, %v", got["A"], err)
	}
}

func TestRefusals(t *testing.T) {
	r := open(t)
	repo := tgr.Scope{Repo: "ada/engine"}
	for _, tt := range []struct {
		scope       tgr.Scope
		name, value string
		want        tgr.Code
	}{
		{repo, "GITHUB_TOKEN", "x", tgr.Invalid}, {repo, "github_x", "x", tgr.Invalid}, {repo, "1A", "x", tgr.Invalid}, {repo, "A-B", "x", tgr.Invalid},
		{repo, "Ä", "x", tgr.Invalid}, {repo, "A B", "x", tgr.Invalid}, {repo, "", "x", tgr.Invalid}, {repo, strings.Repeat("A", 256), "x", tgr.Invalid},
		{repo, "A\n", "x", tgr.Invalid},
		{repo, "A", "", tgr.Invalid}, {repo, "A", "a\x00b", tgr.Invalid}, {repo, "A", "\xff", tgr.Invalid}, {repo, "A", strings.Repeat("x", MaxValue+1), tgr.Invalid},
		{tgr.Scope{}, "A", "x", tgr.Invalid}, {tgr.Scope{Owner: "ada", Repo: "ada/engine"}, "A", "x", tgr.Invalid},
		{tgr.Scope{Owner: "ada", Environment: "prod"}, "A", "x", tgr.Invalid}, {tgr.Scope{Owner: "ada/engine"}, "A", "x", tgr.Invalid},
		{tgr.Scope{Repo: "no/where"}, "A", "x", tgr.NotFound},
		{repo, "_ok_1", strings.Repeat("x", MaxValue), ""}, {repo, "TAB", "a\tb\nc", ""},
	} {
		for what, err := range map[string]error{
			"secret":   r.SetSecret(t.Context(), tt.scope, tt.name, tt.value),
			"variable": r.SetVariable(t.Context(), tt.scope, tt.name, tt.value),
		} {
			if (err == nil) != (tt.want == "") || err != nil && tgr.CodeOf(err) != tt.want {
				t.Errorf("%s %.20q=%.20q in %v: %v, want %q", what, tt.name, tt.value, tt.scope, err, tt.want)
			}
			if err != nil && len(tt.value) > 3 && strings.Contains(err.Error(), tt.value) {
				t.Errorf("the error tells the value: %v", err)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	r := open(t)
	for i := range maxOfEnvironment + 1 {
		err := r.SetSecret(t.Context(), tgr.Scope{Repo: "ada/engine", Environment: "prod"}, "S"+strings.Repeat("x", i), "v")
		if (err != nil) != (i == maxOfEnvironment) {
			t.Fatalf("secret %d of an environment: %v", i+1, err)
		}
	}
	if err := r.SetSecret(t.Context(), tgr.Scope{Repo: "ada/engine", Environment: "prod"}, "S", "another value"); err != nil {
		t.Errorf("one is replaced where there is no room for more: %v", err)
	}
	for i := range 6 { // 6 × 48 KiB
		r.set(tgr.Scope{Repo: "ada/engine"}, "V"+strings.Repeat("x", i), strings.Repeat("v", MaxValue))
	}
	got, err := r.VariablesOf(t.Context(), r.repo, "")
	if err != nil || len(got) != 5 {
		t.Errorf("of 288 KiB of variables a job gets %d, %v; want the 5 that fit into 256 KiB", len(got), err)
	}
}

// db changes the database behind the vault's back.
func (r *room) db(query string, args ...any) int64 {
	r.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(r.dir, "tgr.db")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		r.t.Fatal(err)
	}
	defer db.Close()
	res, err := db.Exec(query, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// Nothing of a value or of the key is in the database's files, and a value that was moved, cut or changed does not open.
func TestSealed(t *testing.T) {
	for name, change := range map[string]string{
		"another name":        "UPDATE settings SET name = 'B'",
		"another repository":  "UPDATE settings SET repo_id = 8",
		"another environment": "UPDATE settings SET environment = 'prod'",
		"an account's":        "UPDATE settings SET repo_id = 0, owner = 'ada'",
		"cut":                 "UPDATE settings SET value = substr(value, 1, 12)",
		"empty":               "UPDATE settings SET value = x''",
		"another version":     "UPDATE settings SET value = x'02' || substr(value, 2)",
		"four bytes":          "UPDATE settings SET value = substr(value, 1, length(value) - 4) || x'00000000'",
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t)
			if err := r.SetSecret(t.Context(), tgr.Scope{Repo: "ada/engine"}, "A", "the secret value"); err != nil {
				t.Fatal(err)
			}
			if n := r.db(change); n != 1 {
				t.Fatalf("%d rows changed", n)
			}
			for _, repo := range []tgr.Repo{r.repo, {ID: 8, FullName: "eve/engine"}} {
				if got, err := r.SecretsOf(t.Context(), repo, "prod"); err == nil && len(got) > 0 {
					t.Errorf("%s gets %v", repo.FullName, got)
				}
			}
			if _, err := Open(t.Context(), r.c); err == nil {
				t.Error("it is opened again without a word")
			}
		})
	}
	r := open(t)
	r.set(tgr.Scope{Repo: "ada/engine"}, "PUBLIC", "the public value")
	if err := r.SetSecret(t.Context(), tgr.Scope{Repo: "ada/engine"}, "A", "the secret value"); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(r.dir, "tgr.db*"))
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	if !bytes.Contains(all, []byte("the public value")) {
		t.Fatal("the test does not see what is stored")
	}
	for what, secret := range map[string][]byte{"value": []byte("the secret value"), "key": r.keys[0].raw, "key in base64": []byte(base64.StdEncoding.EncodeToString(r.keys[0].raw))} {
		if bytes.Contains(all, secret) {
			t.Errorf("the %s is in the database", what)
		}
	}
	if info, err := os.Stat(r.c.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v", info.Mode(), err)
	}
}

func TestRotate(t *testing.T) {
	r := open(t)
	r.set(tgr.Scope{Repo: "ada/engine"}, "A", "1")
	r.set(tgr.Scope{Owner: "ada"}, "B", "2")
	before := r.keys[0]
	if n, err := r.Rotate(t.Context()); err != nil || n != 2 {
		t.Fatalf("Rotate = %d, %v", n, err)
	}
	want := map[string]string{"A": "1", "B": "2"}
	r.sees(r.repo, "", want)
	r.again()
	r.sees(r.repo, "", want)
	if len(r.keys) != 1 || r.keys[0].id == before.id {
		t.Errorf("the file has %d keys, the old one among them: %t", len(r.keys), r.keys[0].id == before.id)
	}
	// A rotation that was interrupted leaves both keys.
	k, err := randomKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeKeys(r.c.KeyFile, []key{k, r.keys[0]}); err != nil {
		t.Fatal(err)
	}
	r.again()
	r.sees(r.repo, "", want)
	if _, err := r.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.again()
	r.sees(r.repo, "", want)
}

func TestKeyFile(t *testing.T) {
	r := open(t)
	good, err := os.ReadFile(r.c.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	r.set(tgr.Scope{Repo: "ada/engine"}, "A", "1")
	for name, spoil := range map[string]func(path string) error{
		"absent, with secrets": os.Remove,
		"readable by others":   func(p string) error { return os.Chmod(p, 0o640) },
		"empty":                func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"not base64":           func(p string) error { return os.WriteFile(p, []byte("hello, world\n"), 0o600) },
		"short":                func(p string) error { return os.WriteFile(p, []byte("aGVsbG8=\n"), 0o600) },
		"another":              func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("A", 43)+"=\n"), 0o600) },
		"a folder":             func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) },
		"a link":               func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/dev/zero", p)) },
		"huge":                 func(p string) error { return os.WriteFile(p, make([]byte, 1<<20), 0o600) },
	} {
		if err := errors.Join(os.RemoveAll(r.c.KeyFile), os.WriteFile(r.c.KeyFile, good, 0o600), spoil(r.c.KeyFile)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), r.c); err == nil || !strings.Contains(err.Error(), r.c.KeyFile) && name != "another" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// No two places are the same bytes, and a value opens in its own place alone.
func TestPlaces(t *testing.T) {
	k, err := randomKey()
	if err != nil {
		t.Fatal(err)
	}
	part := rapid.StringMatching(`[a-z\x00/]{0,3}`)
	gen := rapid.Custom(func(t *rapid.T) store.SettingKey {
		return store.SettingKey{Kind: store.Secret, Owner: part.Draw(t, "owner"), RepoID: rapid.Int64Range(0, 3).Draw(t, "repo"),
			Environment: part.Draw(t, "environment"), Name: part.Draw(t, "name")}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := gen.Draw(t, "a"), gen.Draw(t, "b")
		if (a == b) != bytes.Equal(place(a), place(b)) {
			t.Fatalf("%+v and %+v", a, b)
		}
		value := []byte(rapid.String().Draw(t, "value"))
		sealed, err := k.seal(a, value)
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.open(b, sealed)
		if (err == nil) != (a == b) || err == nil && !bytes.Equal(got, value) {
			t.Fatalf("opened at %+v: %q, %v", b, got, err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	k, err := randomKey()
	if err != nil {
		f.Fatal(err)
	}
	at := store.SettingKey{Kind: store.Secret, RepoID: 7, Name: "A"}
	sealed, err := k.seal(at, []byte("value"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(sealed[:header])
	f.Add([]byte{})
	v := &Vault{keys: []key{k}}
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := v.open(store.SettingRow{SettingKey: at, Value: data}); err == nil && !bytes.Equal(data, sealed) {
			t.Fatalf("%x opens", data)
		}
	})
}
