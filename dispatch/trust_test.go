package dispatch

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// fixed is a Vault that does not change.
type fixed struct {
	secrets, vars       map[string]string
	envSecrets, envVars map[string]string // of the environment prod
	rules               tgr.Environment   // of prod
}

func (f fixed) Secrets(_ context.Context, _ tgr.Run, environment string) (map[string]string, error) {
	return map[string]map[string]string{"": f.secrets, "prod": f.envSecrets}[environment], nil
}

func (f fixed) Variables(_ context.Context, _ tgr.Run, environment string) (map[string]string, error) {
	return map[string]map[string]string{"": f.vars, "prod": f.envVars}[environment], nil
}

func (f fixed) Environment(_ context.Context, _ tgr.Run, name string) (tgr.Environment, error) {
	if name == "prod" {
		return f.rules, nil
	}
	return tgr.Environment{Name: name}, nil
}

func TestTrusted(t *testing.T) {
	for _, tt := range []struct {
		ev   tgr.Event
		want bool
	}{
		{tgr.Event{Name: "push", Actor: "ada"}, true},
		{tgr.Event{Name: "push", Actor: "dependabot[bot]"}, false},
		{tgr.Event{Name: "create", Actor: "dependabot[bot]"}, false},
		{tgr.Event{Name: "deployment", Actor: "dependabot[bot]"}, false},
		{tgr.Event{Name: "deployment_status", Actor: "dependabot[bot]"}, false},
		{tgr.Event{Name: "issue_comment", Actor: "dependabot[bot]"}, true},
		{tgr.Event{Name: "pull_request", Actor: "ada"}, true},
		{tgr.Event{Name: "pull_request", Actor: "eve", Forked: true}, false},
		{tgr.Event{Name: "pull_request_review", Actor: "ada", Forked: true}, false},
		{tgr.Event{Name: "pull_request_target", Actor: "eve", Forked: true}, true},
		{tgr.Event{Name: "pull_request_target", Actor: "dependabot[bot]"}, true},
		{tgr.Event{Name: "workflow_dispatch", Actor: "ada"}, true},
		{tgr.Event{Name: "workflow_run", Actor: "eve", Forked: true}, true},
		{tgr.Event{Name: "workflow_run", Actor: "dependabot[bot]"}, true},
		{tgr.Event{Name: "schedule", Actor: "dependabot[bot]"}, true},
	} {
		if got := Trusted(tt.ev); got != tt.want {
			t.Errorf("%+v is trusted: %t, want %t", tt.ev, got, tt.want)
		}
	}
}

func TestHoldForks(t *testing.T) {
	for _, tt := range []struct {
		name, association string
		first, all, never bool
	}{
		{"pull_request", "FIRST_TIME_CONTRIBUTOR", true, true, false},
		{"pull_request", "FIRST_TIMER", true, true, false},
		{"pull_request", "NONE", true, true, false},
		{"pull_request", "MANNEQUIN", true, true, false},
		{"pull_request", "", true, true, false},
		{"pull_request", "CONTRIBUTOR", false, true, false},
		{"pull_request", "COLLABORATOR", false, false, false},
		{"pull_request", "OWNER", false, false, false},
		{"pull_request_review", "NONE", true, true, false},
		{"pull_request_target", "NONE", false, false, false},
		{"push", "NONE", false, false, false},
	} {
		ev := tgr.Event{Name: tt.name, Forked: true, Actor: "eve", Payload: []byte(`{"pull_request": {"author_association": "` + tt.association + `"}}`)}
		for policy, want := range map[string]bool{HoldFirstTime: tt.first, HoldAll: tt.all, HoldNone: tt.never} {
			if why := HoldForks(policy)(ev); (why != "") != want || want && !strings.Contains(why, "eve") {
				t.Errorf("%s by %s, policy %s: %q", tt.name, tt.association, policy, why)
			}
			ev.Forked = false
			if why := HoldForks(policy)(ev); why != "" {
				t.Errorf("not from a fork, policy %s: %q", policy, why)
			}
			ev.Forked = true
		}
	}
}

const gated = `
on: push
jobs:
  deploy: {environment: prod, concurrency: prod, runs-on: x, steps: [{run: make}]}
  after: {needs: deploy, if: always(), runs-on: x, steps: [{run: make}]}
`

// gateOf is what next says of a job that has just been expanded for prod.
func gateOf(t *testing.T, rules tgr.Environment, run tgr.Run) (tgr.Job, Change) {
	t.Helper()
	p := compile(t, gated)
	now := time.Unix(1000, 0)
	only := limits{now: func() time.Time { return now }, environment: func(string) (tgr.Environment, error) { return rules, nil }}
	jobs := []tgr.Job{{ID: 1, Kind: tgr.WorkJob, Key: "deploy", Status: tgr.Pending}, {ID: 2, Kind: tgr.WorkJob, Key: "after", Needs: []string{"deploy"}, Status: tgr.Pending}}
	row := next(p, tgr.Run{}, jobs, &workflow.Scope{}, only).Expand[1][0]
	if !row.Gated || row.Environment != "prod" || row.Group.Name != "prod" {
		t.Fatalf("expanded to %+v", row)
	}
	row.ID, row.Status = 1, tgr.Pending
	return row, next(p, run, []tgr.Job{row, jobs[1]}, &workflow.Scope{}, only)
}

func TestGates(t *testing.T) {
	main := tgr.Run{Attempt: 2, Event: tgr.Event{Ref: "refs/heads/main"}}
	decided := func(attempt int, env string, approved bool) tgr.Run {
		run := main
		run.Approvals = []tgr.Approval{{Attempt: attempt, Environment: env, Approved: approved, By: "ada", Comment: "why"}}
		return run
	}
	tests := []struct {
		name  string
		rules tgr.Environment
		run   tgr.Run
		want  string
	}{
		{"no rules", tgr.Environment{}, main, "queue now"},
		{"a branch that may", tgr.Environment{Branches: []string{"release/*", "main"}}, main, "queue now"},
		{"a branch that may not", tgr.Environment{Branches: []string{"release/*"}}, main,
			"end failure user: the environment prod does not allow refs/heads/main: its rules are release/*"},
		{"a tag of that name", tgr.Environment{Tags: []string{"main"}}, main, "end failure user: the environment prod does not allow refs/heads/main: its rules are main"},
		{"a wait", tgr.Environment{Wait: 5}, main, "queue in 5m0s"},
		{"an approval", tgr.Environment{Approval: true}, main, "wait: waits for approval of the environment prod"},
		{"approved", tgr.Environment{Approval: true, Wait: 1}, decided(2, "PROD", true), "queue in 1m0s"},
		{"approved in another attempt", tgr.Environment{Approval: true}, decided(1, "prod", true), "wait: waits for approval of the environment prod"},
		{"another environment approved", tgr.Environment{Approval: true}, decided(2, "test", true), "wait: waits for approval of the environment prod"},
		{"rejected", tgr.Environment{Approval: true}, decided(2, "prod", false), "end failure user: ada rejected the environment prod: why"},
		{"cancelled", tgr.Environment{Approval: true}, tgr.Run{CancelReason: "by ada"}, "cancel: by ada"},
	}
	for _, tt := range tests {
		row, c := gateOf(t, tt.rules, tt.run)
		got := "nothing"
		if at, ok := c.Queue[row.ID]; ok && at.IsZero() {
			got = "queue now"
		} else if ok {
			got = "queue in " + at.Sub(time.Unix(1000, 0)).String()
		}
		if why, ok := c.Wait[row.ID]; ok {
			got = "wait: " + why
		}
		if why, ok := c.Cancel[row.ID]; ok {
			got = "cancel: " + why
		}
		if r, ok := c.End[row.ID]; ok {
			got = "end " + string(r.Conclusion) + " " + string(r.Blame) + ": " + r.Reason
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	// A reason that is shown already is no change.
	p := compile(t, gated)
	row := tgr.Job{ID: 1, Kind: tgr.WorkJob, Key: "deploy", Status: tgr.Pending, Gated: true, Environment: "prod", Instance: []byte(`{}`), Reason: "waits for approval of the environment prod"}
	c := next(p, main, []tgr.Job{row}, &workflow.Scope{}, limits{environment: func(string) (tgr.Environment, error) { return tgr.Environment{Approval: true}, nil }})
	if len(c.Wait)+len(c.Queue)+len(c.End) > 0 {
		t.Errorf("nothing is new, and the change is %+v", c)
	}
}

// Nothing of a run on hold begins, not even what always runs, when the run is cancelled.
func TestHeldRun(t *testing.T) {
	p := compile(t, gated)
	jobs := []tgr.Job{{ID: 1, Kind: tgr.WorkJob, Key: "deploy", Status: tgr.Pending}, {ID: 2, Kind: tgr.WorkJob, Key: "after", Needs: []string{"deploy"}, Status: tgr.Pending}}
	c := next(p, tgr.Run{Hold: "why"}, jobs, &workflow.Scope{}, limits{})
	if len(c.Expand)+len(c.Cancel)+len(c.Skip) > 0 {
		t.Errorf("on hold: %+v", c)
	}
	c = next(p, tgr.Run{Hold: "why", CancelReason: "rejected by ada"}, jobs, &workflow.Scope{}, limits{})
	if want := map[tgr.JobID]string{1: "rejected by ada", 2: "rejected by ada"}; !maps.Equal(c.Cancel, want) || len(c.Expand) > 0 {
		t.Errorf("rejected: %+v", c)
	}
}

// ask is a Tokens that remembers what it was asked for.
type ask struct {
	mu      sync.Mutex
	asked   []TokenRequest
	revoked int
}

func (a *ask) tokens(_ context.Context, r TokenRequest) (Token, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, r)
	return Token{Value: "ghs_thetoken", Note: "The token may read", Revoke: func(context.Context) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.revoked++
		return nil
	}}, nil
}

const settingsWorkflow = `
on: [push, pull_request]
permissions: {contents: read, issues: write}
jobs:
  plain:
    runs-on: x
    steps: [{run: 'echo "plain [${{ secrets.a }}] [${{ secrets.b }}] [${{ vars.a }}] [${{ vars.b }}] token [${{ github.token == secrets.GITHUB_TOKEN && github.token != '''' }}]"'}]
  prod:
    needs: plain
    environment: prod
    permissions: {contents: write}
    runs-on: x
    steps: [{run: 'test "${{ secrets.A }}-${{ secrets.B }}" = repo-sealed && echo "prod [${{ vars.A }}] [${{ vars.B }}]"; test -z "${{ secrets.A }}" && echo none'}]
`

func settingsVault() fixed {
	return fixed{secrets: map[string]string{"A": "repo", "B": "hidden"}, vars: map[string]string{"A": "va", "B": "vb"},
		envSecrets: map[string]string{"B": "sealed"}, envVars: map[string]string{"B": "venv"}}
}

// A job gets the settings of its environment over the repository's, and a token of its own, which is revoked.
func TestSettingsOfJobs(t *testing.T) {
	a := &ask{}
	h := open(t, files{"ci.yml": settingsWorkflow}, nil, func(c *Config) { c.Vault, c.Tokens = settingsVault(), a.tokens })
	h.push(nil)
	for _, line := range []string{"plain [***] [***] [va] [vb] token [true]", "prod [va] [venv]", "The token may read"} {
		if !h.log.has(line) {
			t.Errorf("the log has no %q:\n%s", line, strings.Join(h.log.lines, "\n"))
		}
	}
	want := []TokenRequest{
		{Repo: tgr.Repo{FullName: "a/b"}, Permissions: []workflow.Permissions{{"contents": "read", "issues": "write"}}},
		{Repo: tgr.Repo{FullName: "a/b"}, Permissions: []workflow.Permissions{{"contents": "write"}}},
	}
	if diff := cmp.Diff(want, a.asked); diff != "" {
		t.Errorf("tokens asked for (-want +got):\n%s", diff)
	}
	if a.revoked != 2 {
		t.Errorf("%d tokens revoked, want 2", a.revoked)
	}
}

// A pull request from a fork gets no secrets, also where one that is trusted would, and asks for a token that reads.
func TestForkGetsNoSecrets(t *testing.T) {
	a := &ask{}
	h := open(t, files{"ci.yml": settingsWorkflow}, nil, func(c *Config) { c.Vault, c.Tokens = settingsVault(), a.tokens })
	h.memory.Accept(tgr.Event{Name: "pull_request", Action: "opened", Forked: true, Number: 1, Ref: "refs/pull/1/merge", BaseRef: "main", Actor: "eve",
		SHA: strings.Repeat("a", 40), Repo: tgr.Repo{FullName: "a/b"}, Payload: []byte(`{"action":"opened"}`)})
	h.d.Wake()
	h.await(nil)
	for _, line := range []string{"plain [] [] [va] [vb] token [true]", "none"} {
		if !h.log.has(line) {
			t.Errorf("the log has no %q:\n%s", line, strings.Join(h.log.lines, "\n"))
		}
	}
	if len(a.asked) != 2 || slices.ContainsFunc(a.asked, func(r TokenRequest) bool { return !r.ReadOnly }) {
		t.Errorf("tokens asked for: %+v", a.asked)
	}
}

// A token that is refused fails the job with the reason; a fault of the server that makes tokens is ours.
func TestTokenFails(t *testing.T) {
	for code, want := range map[tgr.Code]tgr.Blame{tgr.Invalid: tgr.BlameWorkflow, tgr.Unavailable: tgr.BlameOurs} {
		h := open(t, files{"ci.yml": "on: push\njobs:\n  a: {runs-on: x, steps: [{run: \"true\"}]}\n"}, nil, func(c *Config) {
			c.Tokens = func(context.Context, TokenRequest) (Token, error) {
				return Token{}, tgr.Errorf("token", code, "no token for you")
			}
		})
		runs, jobs := h.push(nil)
		j := jobs[runs[0].ID][1]
		if j.Conclusion != tgr.Failure || j.Blame != want || !strings.Contains(j.Reason, "no token for you") {
			t.Errorf("%s: %s, blame %s: %s", code, j.Conclusion, j.Blame, j.Reason)
		}
	}
}

func TestNarrow(t *testing.T) {
	for _, tt := range []struct {
		stated []workflow.Permissions
		want   workflow.Permissions
	}{
		{[]workflow.Permissions{nil, nil}, nil},
		{[]workflow.Permissions{nil, {"id-token": "write", "contents": "write"}}, workflow.Permissions{"contents": "write"}},
		{[]workflow.Permissions{{"contents": "read", "id-token": "write"}, {"id-token": "write", "contents": "write", "issues": "read"}}, workflow.Permissions{"contents": "read", "id-token": "write"}},
		{[]workflow.Permissions{{}, {"contents": "read"}}, workflow.Permissions{}},
		{[]workflow.Permissions{{"id-token": "write"}, nil, {"id-token": "write"}}, workflow.Permissions{}},
	} {
		if diff := cmp.Diff(tt.want, narrow(tt.stated)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.stated, diff)
		}
	}
}

func TestPermissionsOfCalls(t *testing.T) {
	p := calling(t, "with: {n: 1}\n    permissions: {issues: write}")
	got, err := permissionsOf(p, settled{Instance: workflow.Instance{Key: "a"}, Calls: []call{{Job: "call"}}})
	want := []workflow.Permissions{{"issues": "write"}, {"issues": "write"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := permissionsOf(p, settled{Instance: workflow.Instance{Key: "gone"}}); err == nil {
		t.Error("a job that is not there has permissions")
	}
}
