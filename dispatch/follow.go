package dispatch

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// maxChain is how many levels of workflows may follow one another by workflow_run.
const maxChain = 3

// maxMessage is how many bytes of a commit's message are told to who follows its run.
const maxMessage = 64 << 10

// RunEvent is the workflow_run event of a run, as GitHub makes it: action is what has become of the run, requested,
// in_progress or completed. ok is false where none of followers, the workflows of the repository's default branch, starts
// on it, or where the chain of runs that led to it is as long as one may be. link is where people see a run.
// It is quick and does no I/O: the store calls it in the transaction that changes the run.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/events-that-trigger-workflows#workflow_run
func RunEvent(run tgr.Run, action string, followers []tgr.Follower, link func(tgr.RunID) string) (ev tgr.Event, ok bool) {
	chain := run.Event.Chain
	if run.Event.Name == "workflow_run" {
		chain = max(chain, 1) // GitHub's do not tell how long theirs is
	}
	if chain >= maxChain {
		return tgr.Event{}, false
	}
	t := workflow.Trigger{Event: "workflow_run", Action: action, Workflow: nameOf(run), HeadRef: headBranch(run.Event)}
	for _, f := range followers {
		on := workflow.Event{Name: t.Event, Types: f.Types, Workflows: f.Workflows, Branches: f.Branches, BranchesIgnore: f.BranchesIgnore}
		if ok = (&workflow.Workflow{Events: []workflow.Event{on}}).Match(t).OK; ok {
			break
		}
	}
	if !ok {
		return tgr.Event{}, false
	}
	payload, err := json.Marshal(runPayload(run, action, t.Workflow, link))
	if err != nil {
		return tgr.Event{}, false // parts of a payload that was read before can be written
	}
	return tgr.Event{
		Name: t.Event, Action: action, Repo: run.Event.Repo, Ref: defaultRef(run.Event.Repo),
		Actor: run.Event.Actor, ActorID: run.Event.ActorID, Forked: run.Event.Forked, Chain: chain + 1, Payload: payload,
	}, true
}

// nameOf is the name of a run's workflow as its file says it: ours may say more, to tell two of one name apart.
func nameOf(run tgr.Run) string {
	var p struct {
		Name string `json:"name"`
	}
	if json.Unmarshal(run.Plan, &p) != nil {
		p.Name = ""
	}
	return or(p.Name, or(run.WorkflowName, run.WorkflowFile))
}

// headBranch is the branch or tag that an event is of: of a pull request that which is to be merged.
func headBranch(ev tgr.Event) string {
	name, _ := splitRef(ev.Ref)
	return or(ev.HeadRef, name)
}

// cause is what is passed on of the payload of a run's event.
type cause struct {
	Repository   json.RawMessage `json:"repository"`
	Organization json.RawMessage `json:"organization"`
	Sender       json.RawMessage `json:"sender"`
	HeadCommit   *headCommit     `json:"head_commit"` // of a push
	PullRequest  *struct {
		ID     int64    `json:"id"`
		Number int      `json:"number"`
		URL    string   `json:"url"`
		Head   pullSide `json:"head"`
		Base   pullSide `json:"base"`
	} `json:"pull_request"`
}

type headCommit struct {
	ID        string          `json:"id"`
	Tree      string          `json:"tree_id,omitempty"`
	Message   string          `json:"message,omitempty"`
	Timestamp string          `json:"timestamp,omitempty"`
	Author    json.RawMessage `json:"author,omitempty"`
	Committer json.RawMessage `json:"committer,omitempty"`
}

type pullSide struct {
	Ref  string          `json:"ref"`
	SHA  string          `json:"sha"`
	Repo json.RawMessage `json:"repo"`
}

// brief is a side of a pull request as a workflow_run has it.
func (s pullSide) brief() any {
	var repo struct {
		ID   int64  `json:"id"`
		URL  string `json:"url"`
		Name string `json:"name"`
	}
	_ = json.Unmarshal(s.Repo, &repo) // a repository that was deleted is null
	return map[string]any{"ref": s.Ref, "sha": s.SHA, "repo": repo}
}

// runPayload has the fields of GitHub's payload that do not lead to its API, where a run of ours is not known.
func runPayload(run tgr.Run, action, name string, link func(tgr.RunID) string) map[string]any {
	ev := run.Event
	var c cause
	if json.Unmarshal(ev.Payload, &c) != nil {
		c = cause{}
	}
	repository := repositoryOf(ev.Repo, bounded(c.Repository))
	var sender any = map[string]any{"login": ev.Actor, "id": ev.ActorID, "type": "User"}
	if sent := bounded(c.Sender); sent != nil {
		sender = sent
	}
	status, updated := action, run.Started
	var conclusion any
	switch action {
	case "requested":
		status, updated = "queued", run.Created
	case "completed":
		conclusion, updated = run.Conclusion, run.Finished
	}
	of := map[string]any{
		"id": run.ID, "name": name, "path": run.WorkflowFile, "display_title": run.Title, "workflow_id": workflowID(run),
		"run_number": run.Number, "run_attempt": run.Attempt, "event": ev.Name, "status": status, "conclusion": conclusion,
		"head_branch": headBranch(ev), "head_sha": or(ev.HeadSHA, ev.SHA), "head_commit": c.commit(ev),
		"repository": repository, "head_repository": c.headRepository(repository), "pull_requests": c.pulls(ev),
		"actor": sender, "triggering_actor": sender, "html_url": link(run.ID),
		"created_at": stamp(run.Created), "run_started_at": stamp(run.Started), "updated_at": stamp(updated),
	}
	p := map[string]any{
		"action": action, "workflow_run": of, "repository": repository, "sender": sender,
		"workflow": map[string]any{"id": workflowID(run), "name": name, "path": run.WorkflowFile, "state": "active"},
	}
	if o := bounded(c.Organization); o != nil {
		p["organization"] = o
	}
	return p
}

// bounded is a part of a payload if it is of a size that is passed on; nil if not, and for null.
func bounded(part json.RawMessage) json.RawMessage {
	if len(part) > maxRepository || string(part) == "null" {
		return nil
	}
	return part
}

// commit is what is known of the commit: of a push its message and author, of others no more than its name.
func (c *cause) commit(ev tgr.Event) *headCommit {
	h := &headCommit{ID: or(ev.HeadSHA, ev.SHA)}
	if c.HeadCommit != nil && c.HeadCommit.ID == h.ID {
		*h = *c.HeadCommit
		h.Message = strings.ToValidUTF8(h.Message[:min(len(h.Message), maxMessage)], "")
		h.Author, h.Committer = bounded(h.Author), bounded(h.Committer)
	}
	return h
}

// headRepository is where the commit came from: a fork, for its pull requests; null for one that was deleted.
func (c *cause) headRepository(repository any) any {
	if c.PullRequest == nil {
		return repository
	}
	return bounded(c.PullRequest.Head.Repo)
}

// pulls are the run's pull request, unless it is from a fork.
func (c *cause) pulls(ev tgr.Event) []any {
	if c.PullRequest == nil || ev.Forked {
		return []any{}
	}
	p := c.PullRequest
	return []any{map[string]any{"id": p.ID, "number": p.Number, "url": p.URL, "head": p.Head.brief(), "base": p.Base.brief()}}
}

// workflowID is a number of the workflow file, the same for all its runs. GitHub's are not known here.
func workflowID(run tgr.Run) int64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s", run.Event.Repo.ID, run.WorkflowFile))
	return int64(binary.BigEndian.Uint64(sum[:8]) >> 16) // exact in JavaScript
}

// stamp is a time in a payload; null before it has come.
func stamp(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format(time.RFC3339)
}
