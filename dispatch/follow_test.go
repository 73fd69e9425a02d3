package dispatch

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// ended is a run of the workflow CI for a push of topic.
func ended() tgr.Run {
	ev := onMain("push")
	ev.Ref, ev.SHA, ev.HeadSHA = "refs/heads/topic", strings.Repeat("a", 40), strings.Repeat("a", 40)
	ev.Payload = json.RawMessage(`{"repository": {"id": 7, "full_name": "a/b", "topics": ["x"]}, "sender": {"login": "ada", "id": 3, "type": "User"},
		"organization": {"login": "a"}, "head_commit": {"id": "` + ev.SHA + `", "tree_id": "t", "message": "Fix it", "timestamp": "2026-05-04T03:02:01Z",
		"author": {"name": "Ada", "email": "ada@example.com"}, "added": ["one"], "url": "u"}}`)
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	return tgr.Run{ID: 42, Number: 5, Attempt: 2, Event: ev, WorkflowFile: ".github/workflows/ci.yml", WorkflowName: "CI [ci.yml]", Title: "Fix it",
		Plan: []byte(`{"version": 1, "name": "CI"}`), Status: tgr.Completed, Conclusion: tgr.Failure, Created: at, Started: at.Add(time.Second), Finished: at.Add(time.Minute)}
}

func linked(id tgr.RunID) string { return fmt.Sprintf("https://ci/runs/%d", id) }

func TestRunEvent(t *testing.T) {
	ev, ok := RunEvent(ended(), "completed", []tgr.Follower{{Workflows: []string{"CI"}}}, linked)
	if !ok {
		t.Fatal("nothing follows")
	}
	var payload any
	if err := json.Unmarshal(ev.Payload, &payload); err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	id := payload.(object)["workflow"].(object)["id"]
	if n, ok := id.(float64); !ok || n < 1 || n >= 1<<53 {
		t.Errorf("the workflow's id is %v", id)
	}
	repository, ada, sha := object{"id": 7.0, "full_name": "a/b", "topics": []any{"x"}}, object{"login": "ada", "id": 3.0, "type": "User"}, strings.Repeat("a", 40)
	want := object{
		"action": "completed", "repository": repository, "organization": object{"login": "a"}, "sender": ada,
		"workflow": object{"id": id, "name": "CI", "path": ".github/workflows/ci.yml", "state": "active"},
		"workflow_run": object{
			"id": 42.0, "name": "CI", "path": ".github/workflows/ci.yml", "display_title": "Fix it", "workflow_id": id, "run_number": 5.0, "run_attempt": 2.0,
			"event": "push", "status": "completed", "conclusion": "failure", "head_branch": "topic", "head_sha": sha,
			"head_commit": object{"id": sha, "tree_id": "t", "message": "Fix it", "timestamp": "2026-05-04T03:02:01Z", "author": object{"name": "Ada", "email": "ada@example.com"}},
			"repository":  repository, "head_repository": repository, "pull_requests": []any{}, "actor": ada, "triggering_actor": ada, "html_url": "https://ci/runs/42",
			"created_at": "2026-05-04T03:02:01Z", "run_started_at": "2026-05-04T03:02:02Z", "updated_at": "2026-05-04T03:03:01Z",
		},
	}
	if diff := cmp.Diff(want, payload); diff != "" {
		t.Errorf("payload (-want +got):\n%s", diff)
	}
	ev.Payload = nil
	if diff := cmp.Diff(tgr.Event{Name: "workflow_run", Action: "completed", Repo: ended().Event.Repo, Ref: "refs/heads/main", Actor: "ada", ActorID: 3, Chain: 1}, ev); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

// asked is a part of the payload of a run's event.
func asked(t *testing.T, run tgr.Run, action string, keys ...string) any {
	t.Helper()
	ev, ok := RunEvent(run, action, []tgr.Follower{{}}, linked)
	if !ok {
		t.Fatal("nothing follows")
	}
	var v any
	if err := json.Unmarshal(ev.Payload, &v); err != nil {
		t.Fatal(err)
	}
	for _, k := range append([]string{"workflow_run"}, keys...) {
		v = v.(map[string]any)[k]
	}
	return v
}

func TestRunEventOfPulls(t *testing.T) {
	pull := func(head string, forked bool) tgr.Run {
		run := ended()
		run.Event.Name, run.Event.Ref, run.Event.HeadRef, run.Event.BaseRef, run.Event.Forked = "pull_request", "refs/pull/9/merge", "topic", "main", forked
		run.Event.HeadSHA = strings.Repeat("b", 40)
		run.Event.Payload = json.RawMessage(`{"pull_request": {"id": 90, "number": 9, "url": "u", "head": {"ref": "topic", "sha": "b", "repo": ` + head + `},
			"base": {"ref": "main", "sha": "c", "repo": {"id": 7, "url": "v", "name": "b", "private": true}}}}`)
		return run
	}
	side := func(ref, sha string, id float64) any {
		return map[string]any{"ref": ref, "sha": sha, "repo": map[string]any{"id": id, "url": "v", "name": "b"}}
	}
	own := pull(`{"id": 7, "url": "v", "name": "b"}`, false)
	want := []any{map[string]any{"id": 90.0, "number": 9.0, "url": "u", "head": side("topic", "b", 7), "base": side("main", "c", 7)}}
	if diff := cmp.Diff(any(want), asked(t, own, "completed", "pull_requests")); diff != "" {
		t.Errorf("pull_requests (-want +got):\n%s", diff)
	}
	fork := pull(`{"id": 8, "full_name": "eve/b"}`, true)
	if got := asked(t, fork, "completed", "pull_requests"); len(got.([]any)) != 0 {
		t.Errorf("pull_requests of a fork: %v", got)
	}
	if got := asked(t, fork, "completed", "head_repository", "full_name"); got != "eve/b" {
		t.Errorf("head_repository: %v", got)
	}
	if got := asked(t, pull("null", true), "completed", "head_repository"); got != nil {
		t.Errorf("head_repository of a fork that was deleted: %v", got)
	}
	for _, run := range []tgr.Run{own, fork} {
		if branch, sha := asked(t, run, "completed", "head_branch"), asked(t, run, "completed", "head_sha"); branch != "topic" || sha != strings.Repeat("b", 40) {
			t.Errorf("head: %v at %v", branch, sha)
		}
	}
	// What it starts runs what the default branch says, with its secrets; what is a stranger's is known to be.
	ev, _ := RunEvent(fork, "completed", []tgr.Follower{{}}, linked)
	if !ev.Forked || !Trusted(ev) || ev.Ref != "refs/heads/main" || ev.HeadRef != "" || ev.Number != 0 {
		t.Errorf("the event of a fork's run: %+v", ev)
	}
}

// What is not known, or too much, is left out.
func TestRunEventOfOddRuns(t *testing.T) {
	bare := ended()
	bare.Event.Payload, bare.Plan, bare.Started, bare.Finished = nil, nil, time.Time{}, time.Time{}
	if got := asked(t, bare, "requested", "name"); got != "CI [ci.yml]" {
		t.Errorf("name: %v", got)
	}
	for key, want := range map[string]any{"status": "queued", "conclusion": nil, "run_started_at": nil, "updated_at": "2026-05-04T03:02:01Z"} {
		if got := asked(t, bare, "requested", key); got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
	if got := asked(t, bare, "in_progress", "status"); got != "in_progress" {
		t.Errorf("status: %v", got)
	}
	if got := asked(t, bare, "completed", "repository", "full_name"); got != "a/b" {
		t.Errorf("repository: %v", got)
	}
	large := ended()
	large.Event.Payload = json.RawMessage(strings.Replace(string(large.Event.Payload), "Fix it", strings.Repeat("ä", 100_000), 1))
	if got := asked(t, large, "completed", "head_commit", "message").(string); len(got) != maxMessage {
		t.Errorf("a message of %d bytes", len(got))
	}
	large.Event.Payload = json.RawMessage(`{"sender": {"login": "` + strings.Repeat("x", 1<<20) + `"}}`)
	if got := asked(t, large, "completed", "actor", "login"); got != "ada" {
		t.Errorf("actor: %.40v", got)
	}
}

func TestFollowers(t *testing.T) {
	topic := ended()
	tag := ended()
	tag.Event.Ref = "refs/tags/v1"
	for _, tt := range []struct {
		name   string
		run    tgr.Run
		action string
		f      tgr.Follower
		want   bool
	}{
		{"no filter", topic, "completed", tgr.Follower{}, true},
		{"no types", topic, "in_progress", tgr.Follower{}, true},
		{"its type", topic, "completed", tgr.Follower{Types: []string{"completed"}}, true},
		{"another type", topic, "requested", tgr.Follower{Types: []string{"completed"}}, false},
		{"its name", topic, "completed", tgr.Follower{Workflows: []string{"Lint", "CI"}}, true},
		{"another name", topic, "completed", tgr.Follower{Workflows: []string{"Lint"}}, false},
		{"the name that we show", topic, "completed", tgr.Follower{Workflows: []string{"CI [ci.yml]"}}, false},
		{"its branch", topic, "completed", tgr.Follower{Branches: []string{"top*"}}, true},
		{"another branch", topic, "completed", tgr.Follower{Branches: []string{"main"}}, false},
		{"its branch ignored", topic, "completed", tgr.Follower{BranchesIgnore: []string{"topic"}}, false},
		{"another branch ignored", topic, "completed", tgr.Follower{BranchesIgnore: []string{"main"}}, true},
		{"no branch at all", topic, "completed", tgr.Follower{Branches: []string{}}, false},
		{"a tag", tag, "completed", tgr.Follower{Branches: []string{"v*"}}, true},
	} {
		// As the store keeps them.
		data, err := json.Marshal([]tgr.Follower{{Workflows: []string{"Other"}}, tt.f})
		if err != nil {
			t.Fatal(err)
		}
		var list []tgr.Follower
		if err := json.Unmarshal(data, &list); err != nil {
			t.Fatal(err)
		}
		if _, ok := RunEvent(tt.run, tt.action, list, linked); ok != tt.want {
			t.Errorf("%s: followed: %t, want %t", tt.name, ok, tt.want)
		}
	}
	if _, ok := RunEvent(topic, "completed", nil, linked); ok {
		t.Error("followed by nobody")
	}
}

// After A come B, C and D, and no more.
func TestChainIsBounded(t *testing.T) {
	run, levels := ended(), 0
	for {
		ev, ok := RunEvent(run, "completed", []tgr.Follower{{}}, linked)
		if !ok {
			break
		}
		if levels++; levels > 10 {
			t.Fatal("there is no end of it")
		}
		run.Event = ev
	}
	if levels != 3 {
		t.Errorf("%d levels follow, want 3", levels)
	}
	github := ended()
	github.Event.Name = "workflow_run"
	if ev, _ := RunEvent(github, "completed", []tgr.Follower{{}}, linked); ev.Chain != 2 {
		t.Errorf("after an event of GitHub's: %d", ev.Chain)
	}
}

func TestLearnsFollowers(t *testing.T) {
	source := files{
		"ci.yml":     workOn("push"),
		"after.yml":  workOn("{workflow_run: {workflows: [CI], types: [completed], branches: [main, 'v*']}}"),
		"broken.yml": workOn("{workflow_run: {workflows: [CI], types: [completed]}, schedule: [{cron: 'never'}]}"),
	}
	p, _, err := compiled(t, source, onMain("push"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]tgr.Follower{{Workflows: []string{"CI"}, Types: []string{"completed"}, Branches: []string{"main", "v*"}}}, p.Awaited.Followers); diff != "" {
		t.Errorf("followers (-want +got):\n%s", diff)
	}
	source["huge.yml"] = workOn("{workflow_run: {workflows: [" + strings.Repeat("CI, ", 90_000) + "]}}")
	p, out, err := compiled(t, source, onMain("push"), time.Now())
	if err != nil || len(p.Awaited.Followers) != 1 || !out.has("huge.yml: it is not started by other runs") {
		t.Errorf("%d followers, %v; want what is too long left out, and a word of it: %v", len(p.Awaited.Followers), err, out.lines)
	}
}

// The filters of the event count again when it is planned, on the payload of GitHub or of ours.
func TestWorkflowRunFilters(t *testing.T) {
	source := files{
		"main.yml":  workOn("{workflow_run: {workflows: [CI], branches: [main]}}"),
		"topic.yml": workOn("{workflow_run: {workflows: [CI], branches: [topic]}}"),
		"other.yml": workOn("{workflow_run: {workflows: [CI], branches-ignore: [topic]}}"),
		"lint.yml":  workOn("{workflow_run: {workflows: [Lint]}}"),
	}
	ev, ok := RunEvent(ended(), "completed", []tgr.Follower{{}}, linked)
	if !ok {
		t.Fatal("nothing follows")
	}
	p, _, err := compiled(t, source, ev, time.Now())
	if err != nil || len(p.Runs) != 1 || p.Runs[0].WorkflowFile != ".github/workflows/topic.yml" {
		t.Errorf("%d runs, %v: %+v; want topic.yml", len(p.Runs), err, p.Runs)
	}
}
