package githubtest

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// InstallationToken is a token that was given to the App's installation.
type InstallationToken struct {
	Value        string
	Repositories []string          // names without the owner; nil: all
	Permissions  map[string]string // "contents": "read"; never nil
	Expires      time.Time
	Revoked      bool
}

// AppPermissions are what the installation may do where Config says nothing.
func AppPermissions() map[string]string {
	return map[string]string{"metadata": "read", "contents": "write", "checks": "write", "statuses": "write", "pull_requests": "write",
		"issues": "write", "actions": "write", "packages": "read"}
}

func (s *Server) appPermissions() map[string]string {
	if s.c.AppPermissions == nil {
		return AppPermissions()
	}
	return s.c.AppPermissions
}

// InstallationTokens returns the tokens that were given out, the oldest first.
func (s *Server) InstallationTokens() []InstallationToken {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]InstallationToken, 0, len(s.tokens))
	for _, t := range s.tokens {
		out = append(out, *t)
	}
	return out
}

// installationToken returns a token that is good now, or nil.
func (s *Server) installationToken(value string) *InstallationToken {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tokens {
		if t.Value == value && !t.Revoked && s.c.Now().Before(t.Expires) {
			return t
		}
	}
	return nil
}

// may reports whether t allows an access to a repository, owner/name.
func (t *InstallationToken) may(repo, permission, level string) bool {
	_, name, _ := strings.Cut(repo, "/")
	return t.reaches(name) && rank(t.Permissions[permission]) >= rank(level)
}

func (t *InstallationToken) reaches(name string) bool {
	return t.Repositories == nil || slices.ContainsFunc(t.Repositories, func(r string) bool { return strings.EqualFold(r, name) })
}

func rank(level string) int { return slices.Index([]string{"read", "write", "admin"}, level) + 1 }

// createToken gives the installation a token: of the repositories and with the permissions that were asked for, and of all
// where none were. What the installation itself may not do is refused.
//
// https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app
func (c *call) createToken() {
	var want struct {
		Repositories  []string          `json:"repositories"`
		RepositoryIDs []int64           `json:"repository_ids"`
		Permissions   map[string]string `json:"permissions"`
	}
	if c.r.ContentLength != 0 && !c.read(&want) {
		return
	}
	granted := c.s.appPermissions()
	if len(want.Permissions) == 0 {
		want.Permissions = granted
	}
	for name, level := range want.Permissions {
		if rank(level) == 0 {
			c.fail(http.StatusUnprocessableEntity, fmt.Sprintf("Invalid request. %q is not a possible value of %s.", level, name))
			return
		}
		if rank(level) > rank(granted[name]) {
			c.fail(http.StatusUnprocessableEntity, "The permissions requested are not granted to this installation.")
			return
		}
	}
	for _, name := range want.Repositories {
		if !c.s.hasRepo(name) {
			c.fail(http.StatusUnprocessableEntity, "There is at least one repository that does not exist or is not accessible to the parent installation.")
			return
		}
	}
	t := &InstallationToken{Value: "ghs_" + strings.ReplaceAll(newGUID(), "-", ""), Repositories: want.Repositories,
		Permissions: maps.Clone(want.Permissions), Expires: c.s.c.Now().Add(time.Hour).UTC().Truncate(time.Second)}
	if t.Permissions["metadata"] == "" {
		t.Permissions["metadata"] = "read" // as with every permission
	}
	c.s.mu.Lock()
	c.s.tokens = append(c.s.tokens, t)
	c.s.mu.Unlock()
	c.reply(http.StatusCreated, object{"token": t.Value, "expires_at": t.Expires.Format(time.RFC3339), "permissions": t.Permissions,
		"repository_selection": map[bool]string{true: "all", false: "selected"}[t.Repositories == nil]})
}

// hasRepo reports whether there is a repository of that name, whoever owns it: the App is installed everywhere.
func (s *Server) hasRepo(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for full := range s.repos {
		if _, n, _ := strings.Cut(full, "/"); strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// installation answers for the installation itself, whose token asks.
func (c *call) installation(rest []string) {
	if c.token == nil {
		c.fail(http.StatusUnauthorized, "Bad credentials")
		return
	}
	if c.r.Method != http.MethodDelete || len(rest) != 1 || rest[0] != "token" {
		c.fail(http.StatusNotFound, "Not Found")
		return
	}
	c.s.mu.Lock()
	c.token.Revoked = true
	c.s.mu.Unlock()
	c.w.WriteHeader(http.StatusNoContent)
}

// allowed reports whether the installation's token, if it is one that asks, may do what the route does, and answers if not.
func (c *call) allowed(route string) bool {
	if c.token == nil {
		return true
	}
	_, name, _ := strings.Cut(c.repo.FullName, "/")
	if !c.token.reaches(name) {
		c.fail(http.StatusNotFound, "Not Found")
		return false
	}
	needs := map[string][2]string{
		"POST statuses": {"statuses", "write"}, "POST check-runs": {"checks", "write"}, "PATCH check-runs": {"checks", "write"},
		"GET commits": {"contents", "read"}, "GET contents": {"contents", "read"}, "GET pulls": {"pull_requests", "read"},
		"POST issues": {"issues", "write"}, "PATCH issues": {"issues", "write"}, "GET issues": {"issues", "read"},
	}[route]
	may := rank(c.token.Permissions[needs[0]]) >= rank(needs[1])
	if strings.HasSuffix(route, " issues") { // a pull request is an issue
		may = may || rank(c.token.Permissions["pull_requests"]) >= rank(needs[1])
	}
	if needs[0] != "" && !may {
		c.fail(http.StatusForbidden, "Resource not accessible by integration")
		return false
	}
	return true
}
