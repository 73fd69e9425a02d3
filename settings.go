package tgr

import (
	"path"
	"strings"
	"time"
)

// Scope is where a secret or a variable counts: in all repositories of an account, in one repository, or in the jobs of
// one repository that are for one environment. The narrower scope wins. Names do not differ by case.
type Scope struct {
	Owner       string `json:"owner,omitempty"`       // the account; "" with Repo
	Repo        string `json:"repo,omitempty"`        // owner/name
	Environment string `json:"environment,omitempty"` // only with Repo
}

// String shows a scope in messages.
func (s Scope) String() string {
	switch {
	case s.Repo == "":
		return "the account " + s.Owner
	case s.Environment == "":
		return "the repository " + s.Repo
	}
	return "the environment " + s.Environment + " of " + s.Repo
}

// Setting is a secret or a variable as it may be shown.
type Setting struct {
	Redacted `json:"-"`
	Scope
	Name    string    `json:"name"`
	Value   string    `json:"value,omitempty"` // of variables; never of secrets
	Updated time.Time `json:"updated_at"`
}

// Environment says what a job waits for that is for a deployment environment. One that nobody has described asks for
// nothing.
type Environment struct {
	Repo     string   `json:"repo"` // owner/name
	Name     string   `json:"name"` // does not differ by case
	Branches []string `json:"branches,omitempty"`
	Tags     []string `json:"tags,omitempty"`
	Approval bool     `json:"approval,omitempty"`     // somebody has to approve, for each attempt
	Wait     int      `json:"wait_minutes,omitempty"` // before its jobs begin; 0 to 43,200
}

// MaxWait is the longest that the jobs of an environment may be made to wait, in minutes: 30 days.
const MaxWait = 43_200

// Allows reports whether jobs of a ref may use the environment: one of its patterns matches, or it has none. A * does not
// match a slash, as at GitHub.
func (e *Environment) Allows(ref string) bool {
	if len(e.Branches)+len(e.Tags) == 0 {
		return true
	}
	for prefix, patterns := range map[string][]string{"refs/heads/": e.Branches, "refs/tags/": e.Tags} {
		name, ok := strings.CutPrefix(ref, prefix)
		for _, p := range patterns {
			if match, err := path.Match(p, name); ok && err == nil && match {
				return true
			}
		}
	}
	return false
}

// Validate refuses patterns that match nothing, names that cannot be, and waits that are too long.
func (e *Environment) Validate() error {
	if e.Name == "" || len(e.Name) > 255 || strings.ContainsFunc(e.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Errorf("environment", Invalid, "the name of an environment has 1 to 255 characters, none of them a control character")
	}
	if e.Wait < 0 || e.Wait > MaxWait {
		return Errorf("environment", Invalid, "a wait of %d minutes: expected 0 to %d", e.Wait, MaxWait)
	}
	if len(e.Branches)+len(e.Tags) > 100 {
		return Errorf("environment", Invalid, "%d patterns: at most 100", len(e.Branches)+len(e.Tags))
	}
	for _, list := range [][]string{e.Branches, e.Tags} {
		for _, p := range list {
			if _, err := path.Match(p, "x"); err != nil || p == "" || len(p) > 255 {
				return Errorf("environment", Invalid, "%.50q is not a pattern of branches or tags", p)
			}
		}
	}
	return nil
}
