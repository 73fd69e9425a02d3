package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/store"
	"github.com/terraphim/tgr/vault"
	"github.com/terraphim/tgr/web"
)

// openVault opens the secrets and variables of the database.
func (s *server) openVault(ctx context.Context) (err error) {
	s.vault, err = vault.Open(ctx, vault.Config{Store: s.store, KeyFile: s.c.get("secrets-key-file"), Repo: s.repoID})
	return err
}

// repoID is the id of a repository that has sent a webhook, or that GitHub knows.
func (s *server) repoID(ctx context.Context, fullName string) (int64, error) {
	id, err := s.store.RepoID(ctx, fullName)
	if err != nil || id != 0 {
		return id, err
	}
	if !s.reports.client.CanReport() {
		return 0, tgr.Errorf("repository", tgr.NotFound, "no webhook of the repository %s has arrived yet, and there are no credentials to ask GitHub for it", fullName)
	}
	return s.reports.client.RepoID(ctx, fullName)
}

// jobVault lets dispatch see what jobs may use.
type jobVault struct {
	*vault.Vault
	store *store.Store
}

// Secrets implements dispatch.Vault.
func (v jobVault) Secrets(ctx context.Context, run tgr.Run, environment string) (map[string]string, error) {
	return v.SecretsOf(ctx, run.Event.Repo, environment)
}

// Variables implements dispatch.Vault.
func (v jobVault) Variables(ctx context.Context, run tgr.Run, environment string) (map[string]string, error) {
	return v.VariablesOf(ctx, run.Event.Repo, environment)
}

// Environment implements dispatch.Vault.
func (v jobVault) Environment(ctx context.Context, run tgr.Run, name string) (tgr.Environment, error) {
	return v.store.Environment(ctx, run.Event.Repo.ID, name)
}

// keeper lets web change settings.
type keeper struct{ s *server }

// Settings implements web.Keeper.
func (k keeper) Settings(ctx context.Context, kind string, scope tgr.Scope) ([]tgr.Setting, error) {
	if kind == web.Secret {
		return k.s.vault.Secrets(ctx, scope)
	}
	return k.s.vault.Variables(ctx, scope)
}

// SetSetting implements web.Keeper.
func (k keeper) SetSetting(ctx context.Context, kind string, set tgr.Setting) error {
	if kind == web.Secret {
		return k.s.vault.SetSecret(ctx, set.Scope, set.Name, set.Value)
	}
	return k.s.vault.SetVariable(ctx, set.Scope, set.Name, set.Value)
}

// RemoveSetting implements web.Keeper.
func (k keeper) RemoveSetting(ctx context.Context, kind string, set tgr.Setting) error {
	if kind == web.Secret {
		return k.s.vault.RemoveSecret(ctx, set.Scope, set.Name)
	}
	return k.s.vault.RemoveVariable(ctx, set.Scope, set.Name)
}

// Rotate implements web.Keeper.
func (k keeper) Rotate(ctx context.Context) (int, error) { return k.s.vault.Rotate(ctx) }

// Environments implements web.Keeper.
func (k keeper) Environments(ctx context.Context, repo string) ([]tgr.Environment, error) {
	id, err := k.s.repoID(ctx, repo)
	if err != nil {
		return nil, err
	}
	return k.s.store.Environments(ctx, id)
}

// SetEnvironment implements web.Keeper.
func (k keeper) SetEnvironment(ctx context.Context, e tgr.Environment) error {
	id, err := k.s.repoID(ctx, e.Repo)
	if err != nil {
		return err
	}
	return k.s.store.PutEnvironment(ctx, id, e)
}

// RemoveEnvironment implements web.Keeper.
func (k keeper) RemoveEnvironment(ctx context.Context, repo, name string) error {
	id, err := k.s.repoID(ctx, repo)
	if err != nil {
		return err
	}
	return k.s.store.DeleteEnvironment(ctx, id, name)
}

// jobTokens makes the GITHUB_TOKEN of jobs, as the settings say.
type jobTokens struct {
	client   *github.Client
	defaults map[string]string // of workflows that state no permissions
	server   string            // the server's own token, for trusted jobs; "": it is not shared
}

// openTokens reads the settings of job tokens.
func openTokens(c *config, client *github.Client) (jobTokens, error) {
	t := jobTokens{client: client, defaults: map[string]string{"contents": "read", "packages": "read"}}
	whose, err := c.oneOf("job-token", "app", "server")
	if err != nil {
		return t, err
	}
	if whose == "server" && !client.CanMakeTokens() {
		t.server = c.get("github-token")
	}
	level, err := c.oneOf("job-permissions", "read", "write")
	if level == "write" {
		for _, scope := range github.TokenScopes() {
			t.defaults[scope] = "write"
		}
	}
	return t, err
}

// revoke ends the life of a job's token, if it was made for the job.
func (t jobTokens) revoke(ctx context.Context, token string) error {
	if token == t.server || !t.client.CanMakeTokens() {
		return nil
	}
	return t.client.RevokeToken(ctx, token)
}

// token implements dispatch.Tokens.
func (t jobTokens) token(ctx context.Context, r dispatch.TokenRequest) (dispatch.Token, error) {
	if !t.client.CanMakeTokens() {
		switch {
		case t.server == "":
			return dispatch.Token{Note: "GITHUB_TOKEN: none, as the server is no GitHub App (setting job-token)"}, nil
		case r.ReadOnly:
			return dispatch.Token{Note: "GITHUB_TOKEN: none, as the server's own could write, and this run is not trusted"}, nil
		}
		return dispatch.Token{Value: t.server, Note: "GITHUB_TOKEN: the server's own, with all that it may do (setting job-token)"}, nil
	}
	want := t.allowed(r)
	got, err := t.client.JobToken(ctx, r.Repo.FullName, want)
	if tgr.CodeOf(err) == tgr.NotFound {
		return dispatch.Token{Note: "GITHUB_TOKEN: none: " + tgr.MessageOf(err)}, nil
	}
	if err != nil {
		return dispatch.Token{}, err
	}
	note := "GITHUB_TOKEN permissions: " + permissionList(got.Granted) + "; it expires at " + got.Expires.UTC().Format(time.TimeOnly) + " UTC"
	if len(got.Missing) > 0 {
		note += "; the GitHub App itself may not: " + strings.Join(got.Missing, ", ")
	}
	return dispatch.Token{Value: got.Value, Note: note, Revoke: func(ctx context.Context) error {
		return t.client.RevokeToken(ctx, got.Value)
	}}, nil
}

// allowed is what all of those allow who state permissions, with the default where one states none.
func (t jobTokens) allowed(r dispatch.TokenRequest) map[string]string {
	var out map[string]string
	for _, stated := range r.Permissions {
		if stated == nil {
			stated = t.defaults
		}
		next := map[string]string{}
		for scope, level := range stated {
			switch above := out[scope]; {
			case out != nil && above == "":
				continue
			case out != nil && above == "read", r.ReadOnly && level == "write":
				level = "read"
			}
			next[scope] = level
		}
		out = next
	}
	return out
}

func permissionList(granted map[string]string) string {
	var out []string
	for _, scope := range github.TokenScopes() {
		if level := granted[strings.ReplaceAll(scope, "-", "_")]; level != "" {
			out = append(out, fmt.Sprintf("%s: %s", scope, level))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
