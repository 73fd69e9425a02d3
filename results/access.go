package results

import (
	"strings"

	"github.com/terraphim/tgr"
)

// access is which caches a job may use. The rules are GitHub's: a job writes for its own ref, and reads what its own
// ref, its base and the default branch have. Beyond them, what an untrusted event wrote is apart from what a trusted one
// wrote for the same ref, so that nobody who has secrets, or publishes, restores a stranger's files.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/dependency-caching#restrictions-for-accessing-a-cache
type access struct {
	trusted bool
	scopes  []scope // that may be read, in this order; the first is the job's own
	read    bool
	denied  string // why nothing may be written; "": the job's own scope may be
}

// scope is a ref, and who wrote for it.
type scope struct {
	ref     string
	trusted bool
}

func accessOf(j *Job) access {
	ev := j.Run.Event
	a := access{trusted: trusted(ev) && !j.Runs.Own, read: j.CacheMode != "none" && j.CacheMode != "write-only"}
	a.add(scope{ev.Ref, a.trusted})
	for _, branch := range []string{ev.BaseRef, ev.Repo.DefaultBranch} {
		if branch != "" {
			a.add(scope{"refs/heads/" + strings.TrimPrefix(branch, "refs/heads/"), true})
		}
	}
	switch {
	case j.CacheMode == "none" || j.CacheMode == "read":
		a.denied = "the job has cache-mode: " + j.CacheMode
	case ev.Ref == "":
		a.denied = "the event has no ref"
	case !trusted(ev) && !strings.HasPrefix(ev.Ref, "refs/pull/"):
		a.denied = "anybody can cause the event " + ev.Name + ", and it runs for a branch"
	}
	return a
}

func (a *access) add(s scope) {
	for _, have := range a.scopes {
		if have == s {
			return
		}
	}
	a.scopes = append(a.scopes, s)
}

// trusted reports whether only people with write access can cause an event.
func trusted(ev tgr.Event) bool {
	switch ev.Name {
	case "issue_comment", "issues", "discussion", "discussion_comment", "fork", "watch", "gollum", "workflow_run",
		"pull_request_target", "pull_request_review", "pull_request_review_comment", "pull_request_comment":
		return false
	}
	return !ev.Forked
}
