package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// localEvent is the event that GitHub would send for the repository as it is. What --payload has wins over it, field
// by field, and --input over that.
func localEvent(ctx context.Context, name string, src *localSource, f runFlags) (tgr.Event, error) {
	if len(f.inputs) > 0 && name != "workflow_dispatch" {
		return tgr.Event{}, fmt.Errorf("--input is for workflow_dispatch, and the event is %s", name)
	}
	ev := tgr.Event{Name: name, Repo: src.repo, Ref: src.ref, SHA: src.head, HeadSHA: src.head, Actor: envOr("USER", "local")}
	if src.head == "" && isDir(path.Join(src.dir, workflowDir)) { // nothing is committed yet: the tree becomes a commit
		var err error
		if _, ev.SHA, err = src.snapshot(); err != nil {
			return ev, err
		}
		ev.HeadSHA = ev.SHA
	}
	payload := src.payload(ev)
	switch name {
	case "pull_request", "pull_request_target":
		ev.BaseSHA = src.mergeBase(ctx)
		maps.Copy(payload, src.pullRequest(ev))
	case "workflow_dispatch":
		payload["inputs"] = map[string]any{}
	}
	if f.payload != "" {
		given, err := readGivenPayload(f.payload)
		if err != nil {
			return ev, err
		}
		merge(payload, given)
	}
	if f.ref != "" {
		switch name {
		case "pull_request", "pull_request_target":
			merge(payload, map[string]any{"pull_request": map[string]any{"base": map[string]any{"ref": strings.TrimPrefix(f.ref, "refs/heads/")}}})
		case "push", "workflow_dispatch":
			payload["ref"] = fullRef(f.ref)
		default:
			return ev, fmt.Errorf("--ref is for push, pull_request, pull_request_target and workflow_dispatch, and the event is %s", name)
		}
	}
	if inputs, ok := payload["inputs"].(map[string]any); ok && name == "workflow_dispatch" {
		for _, kv := range f.inputs {
			k, v, _ := strings.Cut(kv, "=")
			inputs[k] = v
		}
	}
	data, err := json.Marshal(payload)
	if err != nil {
		return ev, err
	}
	ev.Payload = data
	return ev, readEvent(&ev)
}

// payload is what the payloads of all events have, and what a push has.
func (s *localSource) payload(ev tgr.Event) map[string]any {
	owner, name := path.Split(ev.Repo.FullName)
	owner = strings.Trim(owner, "/")
	parent, _, _ := strings.Cut(s.commit.parents, " ")
	if parent == "" {
		parent = strings.Repeat("0", 40)
	}
	commit := map[string]any{
		"id": ev.SHA, "tree_id": s.commit.tree, "distinct": true, "message": s.commit.message, "timestamp": s.commit.date,
		"url":       "https://github.com/" + ev.Repo.FullName + "/commit/" + ev.SHA,
		"author":    map[string]any{"name": s.commit.author, "email": s.commit.email},
		"committer": map[string]any{"name": s.commit.author, "email": s.commit.email},
	}
	p := map[string]any{
		"repository": s.repository(owner, name),
		"sender":     map[string]any{"login": ev.Actor, "type": "User"},
	}
	if ev.Name == "push" {
		maps.Copy(p, map[string]any{
			"ref": ev.Ref, "before": parent, "after": ev.SHA, "created": false, "deleted": false, "forced": false,
			"head_commit": commit, "commits": []any{commit},
			"pusher": map[string]any{"name": s.commit.author, "email": s.commit.email},
		})
	}
	if ev.Name == "workflow_dispatch" {
		p["ref"] = ev.Ref
	}
	return p
}

func (s *localSource) repository(owner, name string) map[string]any {
	return map[string]any{
		"id": s.repo.ID, "full_name": s.repo.FullName, "name": name, "owner": map[string]any{"login": owner, "name": owner},
		"default_branch": s.repo.DefaultBranch, "clone_url": s.repo.CloneURL, "html_url": "https://github.com/" + s.repo.FullName,
		"private": false, "fork": false,
	}
}

// pullRequest is what the payload of a pull request has: the branch is to be merged into the default branch.
func (s *localSource) pullRequest(ev tgr.Event) map[string]any {
	owner, name := path.Split(ev.Repo.FullName)
	owner = strings.Trim(owner, "/")
	title, _, _ := strings.Cut(s.commit.message, "\n")
	side := func(ref, sha string) map[string]any {
		return map[string]any{"ref": ref, "sha": sha, "label": owner + ":" + ref, "repo": s.repository(owner, name),
			"user": map[string]any{"login": owner}}
	}
	return map[string]any{
		"action": "opened", "number": 1,
		"pull_request": map[string]any{
			"number": 1, "state": "open", "draft": false, "merged": false, "title": title, "body": "", "labels": []any{},
			"user": map[string]any{"login": ev.Actor}, "head": side(s.branch, ev.SHA), "base": side(s.repo.DefaultBranch, ev.BaseSHA),
		},
	}
}

// readEvent sets what the event has from its payload, as it is after --payload.
func readEvent(ev *tgr.Event) error {
	type side struct {
		Ref string `json:"ref"`
		SHA string `json:"sha"`
	}
	var p struct {
		Action      string `json:"action"`
		Number      int    `json:"number"`
		Ref         string `json:"ref"`
		Deleted     bool   `json:"deleted"`
		PullRequest struct {
			Number     int
			Head, Base side
		} `json:"pull_request"`
		Release struct {
			TagName string `json:"tag_name"`
		} `json:"release"`
	}
	if err := json.Unmarshal(ev.Payload, &p); err != nil {
		return fmt.Errorf("the payload of a %s: %w", ev.Name, err)
	}
	ev.Action = p.Action
	switch ev.Name {
	case "pull_request", "pull_request_target":
		ev.Number = max(p.Number, p.PullRequest.Number, 1)
		ev.HeadRef, ev.BaseRef, ev.BaseSHA = p.PullRequest.Head.Ref, p.PullRequest.Base.Ref, p.PullRequest.Base.SHA
		ev.Ref = fmt.Sprintf("refs/pull/%d/merge", ev.Number)
		if ev.Name == "pull_request_target" {
			ev.Ref = "refs/heads/" + ev.BaseRef
		}
	case "release":
		if p.Release.TagName != "" {
			ev.Ref = "refs/tags/" + p.Release.TagName
		}
	case "push", "workflow_dispatch":
		if ev.Ref = p.Ref; !strings.HasPrefix(p.Ref, "refs/") {
			ev.Ref = "refs/heads/" + p.Ref
		}
		ev.Deleted = ev.Name == "push" && p.Deleted
	}
	return nil
}

func readGivenPayload(file string) (map[string]any, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--payload: %w", err)
	}
	var given map[string]any
	if err := json.Unmarshal(data, &given); err != nil || given == nil {
		return nil, fmt.Errorf("--payload %s: it is not a JSON object", file)
	}
	return given, nil
}

// merge puts the fields of from into a mapping, and those of a mapping within it into that.
func merge(into, from map[string]any) {
	for k, v := range from {
		inner, ok1 := into[k].(map[string]any)
		more, ok2 := v.(map[string]any)
		if ok1 && ok2 {
			merge(inner, more)
		} else {
			into[k] = v
		}
	}
}

// commit is what git says of HEAD.
type commit struct{ sha, parents, tree, author, email, date, message string }

// commitFormat is for git log; parseCommit reads what it prints.
const commitFormat = "--format=%H%x00%P%x00%T%x00%an%x00%ae%x00%aI%x00%B"

func parseCommit(out string) commit {
	f := strings.SplitN(strings.TrimRight(out, "\n"), "\x00", 7)
	if len(f) < 7 {
		return commit{date: time.Now().Format(time.RFC3339)}
	}
	return commit{sha: f[0], parents: f[1], tree: f[2], author: f[3], email: f[4], date: f[5], message: f[6]}
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}
