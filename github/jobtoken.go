package github

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/go-github/v88/github"
	"github.com/terraphim/tgr"
)

// JobToken is a token for one job.
type JobToken struct {
	tgr.Redacted

	Value   string
	Expires time.Time
	Granted map[string]string // what it may do, as the API names it
	Missing []string          // what was asked for and the App itself may not do: "issues: write"
}

// tokenScopes are the permissions of workflows that a token can have, and what the API calls them. Others, such as
// id-token, are not the API's.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#permissions
func tokenScopes() map[string]string {
	return map[string]string{"actions": "actions", "attestations": "attestations", "checks": "checks", "contents": "contents", "deployments": "deployments",
		"discussions": "discussions", "issues": "issues", "packages": "packages", "pages": "pages", "pull-requests": "pull_requests",
		"repository-projects": "repository_projects", "security-events": "security_events", "statuses": "statuses"}
}

// TokenScopes are the names, in workflows, of the permissions that a token can have, sorted.
func TokenScopes() []string { return slices.Sorted(maps.Keys(tokenScopes())) }

// RepoID is the id of a repository, or an error of [tgr.NotFound].
func (c *Client) RepoID(ctx context.Context, repo string) (int64, error) {
	api, err := c.forRepo(ctx, repo)
	if err != nil {
		if answered(err, http.StatusNotFound) {
			err = tgr.Errorf("github.repository", tgr.NotFound, "GitHub App %d is not installed for %s", c.c.AppID, repo)
		}
		return 0, err
	}
	owner, name, _ := strings.Cut(repo, "/")
	got, _, err := api.Repositories.Get(ctx, owner, name)
	switch {
	case answered(err, http.StatusNotFound, http.StatusForbidden):
		return 0, tgr.Errorf("github.repository", tgr.NotFound, "GitHub knows no repository %s, or does not show it with these credentials", repo)
	case err != nil:
		return 0, tgr.Errorf("github.repository", tgr.Unavailable, "ask GitHub for %s: %w", repo, err)
	}
	return got.GetID(), nil
}

// CanMakeTokens reports whether there is an App, which alone can make tokens for jobs.
func (c *Client) CanMakeTokens() bool { return c.app != nil }

// JobToken makes a token of the App's installation for one repository, with the permissions that a workflow states and
// that the App itself has. It expires after an hour, as GitHub has it, or with RevokeToken. An error of
// [tgr.NotFound] means that the App is not installed there.
func (c *Client) JobToken(ctx context.Context, repo string, permissions map[string]string) (JobToken, error) {
	t, err := c.jobToken(ctx, repo, permissions)
	if answered(err, http.StatusUnprocessableEntity, http.StatusNotFound) {
		c.forget(repo) // its permissions were changed, or it was installed anew
		t, err = c.jobToken(ctx, repo, permissions)
	}
	switch {
	case err == nil:
		return t, nil
	case answered(err, http.StatusNotFound):
		return t, tgr.Errorf("github.token", tgr.NotFound, "GitHub App %d is not installed for %s", c.c.AppID, repo)
	case answered(err, http.StatusUnprocessableEntity, http.StatusForbidden):
		return t, tgr.Errorf("github.token", tgr.Invalid, "GitHub refused a token for %s: %w", repo, err)
	}
	return t, tgr.Errorf("github.token", tgr.Unavailable, "GitHub gave no token for %s: %w", repo, err)
}

func (c *Client) jobToken(ctx context.Context, repo string, permissions map[string]string) (t JobToken, err error) {
	if c.app == nil {
		return t, tgr.Errorf("github.token", tgr.Invalid, "only a GitHub App can make tokens for jobs")
	}
	in, err := c.install(ctx, repo)
	if err != nil {
		return t, err
	}
	// Without any, GitHub would give the token all that the App may do.
	want := map[string]string{"metadata": "read"}
	for name, level := range permissions {
		scope, ok := tokenScopes()[name]
		have := in.may[scope]
		switch {
		case !ok || level != "read" && level != "write":
			continue
		case have == "" || level == "write" && have == "read":
			t.Missing = append(t.Missing, name+": "+level)
			if level = have; have == "" {
				continue
			}
		}
		want[scope] = level
	}
	slices.Sort(t.Missing)
	options := &github.InstallationTokenOptions{Permissions: &github.InstallationPermissions{}}
	_, name, _ := strings.Cut(repo, "/")
	options.Repositories = []string{name}
	data, err := json.Marshal(want)
	if err == nil {
		err = json.Unmarshal(data, options.Permissions)
	}
	if err != nil {
		return t, fmt.Errorf("permissions of a token: %w", err)
	}
	asApp, err := c.api(c.app)
	if err != nil {
		return t, err
	}
	got, _, err := asApp.Apps.CreateInstallationToken(ctx, in.id, options)
	if err != nil {
		return t, err
	}
	t.Value, t.Expires, t.Granted = got.GetToken(), got.GetExpiresAt().Time, permissionMap(got.Permissions)
	return t, nil
}

// RevokeToken ends the life of a token that JobToken made. One that has ended already is no error.
func (c *Client) RevokeToken(ctx context.Context, token string) error {
	api, err := c.api(c.c.HTTP, github.WithAuthToken(token))
	if err != nil {
		return err
	}
	if _, err = api.Apps.RevokeInstallationToken(ctx); answered(err, http.StatusUnauthorized) {
		return nil
	}
	return err
}

// permissionMap are permissions by the names that the API has for them.
func permissionMap(p *github.InstallationPermissions) map[string]string {
	out := map[string]string{}
	data, err := json.Marshal(p)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		return nil // strings only: cannot be
	}
	return out
}

// answered reports whether err is GitHub's answer with one of the statuses.
func answered(err error, statuses ...int) bool {
	var e *github.ErrorResponse
	return errors.As(err, &e) && e.Response != nil && slices.Contains(statuses, e.Response.StatusCode)
}
