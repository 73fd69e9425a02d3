package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// Vault yields what the jobs of a run may use. Dispatch does not ask it for secrets of a run that is not trusted.
// Its methods are safe for concurrent use, and quick: they are called while a run is settled.
type Vault interface {
	// Secrets are those of the run's repository and its owner, or those of an environment alone where that is not "".
	Secrets(ctx context.Context, run tgr.Run, environment string) (map[string]string, error)
	// Variables are likewise.
	Variables(ctx context.Context, run tgr.Run, environment string) (map[string]string, error)
	// Environment says what jobs for an environment wait for.
	Environment(ctx context.Context, run tgr.Run, name string) (tgr.Environment, error)
}

// TokenRequest asks for the GITHUB_TOKEN of one job.
type TokenRequest struct {
	Repo tgr.Repo
	// Permissions are those that the job states, after those that each job states by which its workflow is called: what all
	// of them allow counts. One is nil where nothing is stated: the default.
	Permissions []workflow.Permissions
	ReadOnly    bool // the run is not trusted: nothing may be written
}

// Token is the GITHUB_TOKEN of one job.
type Token struct {
	tgr.Redacted

	Value  string                      // "": there is none
	Revoke func(context.Context) error // when the job has ended; nil: nothing to do
	Note   string                      // for the job's log: what the token may do, or why there is none
}

// Tokens makes tokens for jobs. An error with the code tgr.Invalid or tgr.Unauthorized fails the job, with its message; any other is a
// fault of ours.
type Tokens func(ctx context.Context, r TokenRequest) (Token, error)

// Trusted reports whether a run of ev gets secrets and a token that may write. A pull request from a fork runs what anybody
// wrote, and so does what Dependabot proposes; pull_request_target runs what the default branch says.
//
// https://docs.github.com/en/actions/reference/security/secure-use
// https://docs.github.com/en/code-security/dependabot/troubleshooting-dependabot/troubleshooting-dependabot-on-github-actions
func Trusted(ev tgr.Event) bool {
	switch ev.Name {
	case "pull_request", "pull_request_review", "pull_request_review_comment":
		return !ev.Forked && ev.Actor != dependabot
	case "push", "create", "deployment", "deployment_status":
		return ev.Actor != dependabot
	}
	return true
}

const dependabot = "dependabot[bot]"

// The policies of HoldForks.
const (
	HoldFirstTime = "first-time" // pull requests of people of whom nothing was merged yet
	HoldAll       = "all"        // of everybody who is not a member or collaborator
	HoldNone      = "none"
)

// HoldForks says which pull requests from forks wait until somebody approves them: why, or "".
//
// https://docs.github.com/en/actions/how-tos/manage-workflow-runs/approve-runs-from-forks
func HoldForks(policy string) func(tgr.Event) string {
	return func(ev tgr.Event) string {
		if policy == HoldNone || !ev.Forked || !strings.HasPrefix(ev.Name, "pull_request") || ev.Name == "pull_request_target" {
			return ""
		}
		var p struct {
			PullRequest struct {
				Association string `json:"author_association"`
			} `json:"pull_request"`
		}
		if json.Unmarshal(ev.Payload, &p) != nil {
			p.PullRequest.Association = ""
		}
		known := []string{"OWNER", "MEMBER", "COLLABORATOR"}
		if policy == HoldFirstTime {
			known = append(known, "CONTRIBUTOR")
		}
		if slices.Contains(known, p.PullRequest.Association) {
			return ""
		}
		return fmt.Sprintf("waits for approval: a pull request from a fork, by %s, who is %s", or(ev.Actor, "somebody"),
			map[string]string{HoldFirstTime: "new here", HoldAll: "not a member"}[policy])
	}
}

// gate decides on a job that waits for what its environment asks for.
func (g *graph) gate(row tgr.Job) {
	if g.only.environment == nil || row.Environment == "" { // of the latter a re-run waits, for labels that it has now
		g.change.Queue[row.ID] = time.Time{}
		return
	}
	env, err := g.only.environment(row.Environment)
	if err != nil {
		g.wait(row, fmt.Sprintf("the rules of the environment %s could not be read: %s", row.Environment, tgr.MessageOf(err)))
		return
	}
	blame := func(format string, args ...any) {
		g.change.End[row.ID] = JobResult{Conclusion: tgr.Failure, Blame: tgr.BlameUser, Reason: fmt.Sprintf(format, args...)}
	}
	if ref := g.run.Event.Ref; !env.Allows(ref) {
		blame("the environment %s does not allow %s: its rules are %s", row.Environment, ref, strings.Join(slices.Concat(env.Branches, env.Tags), ", "))
		return
	}
	if env.Approval {
		switch a := g.run.Approval(row.Environment); {
		case a == nil && g.only.since(row.Queued) > maxApproval:
			blame("nobody approved the environment %s within %s", row.Environment, span(maxApproval))
			return
		case a == nil:
			g.wait(row, fmt.Sprintf("waits for approval of the environment %s", row.Environment))
			return
		case !a.Approved:
			blame("%s rejected the environment %s%s", a.By, row.Environment, because(a.Comment))
			return
		}
	}
	var at time.Time
	if env.Wait > 0 {
		at = g.only.now().Add(time.Duration(env.Wait) * time.Minute)
	}
	g.change.Queue[row.ID] = at
}

// wait shows why a job waits.
func (g *graph) wait(row tgr.Job, why string) {
	if row.Reason != why {
		g.change.Wait[row.ID] = why
	}
}

func because(comment string) string {
	if comment == "" {
		return ""
	}
	return ": " + comment
}
