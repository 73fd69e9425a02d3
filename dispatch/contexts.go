package dispatch

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/workflow"
)

// githubContext is the github context of a run, but for event, which the runner reads from the payload itself, and
// for what differs from step to step.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/contexts#github-context
func (d *Dispatcher) githubContext(run tgr.Run, token string) map[string]any {
	ev := run.Event
	owner, _, _ := strings.Cut(ev.Repo.FullName, "/")
	refName, refType := splitRef(ev.Ref)
	return map[string]any{
		"actor": ev.Actor, "actor_id": id(ev.ActorID), "triggering_actor": ev.Actor,
		"api_url": d.c.Server.API, "graphql_url": d.c.Server.GraphQL, "server_url": d.c.Server.URL,
		"base_ref": ev.BaseRef, "head_ref": ev.HeadRef,
		"event_name": ev.Name, "ref": ev.Ref, "ref_name": refName, "ref_type": refType, "ref_protected": false,
		"repository": ev.Repo.FullName, "repository_id": id(ev.Repo.ID), "repository_owner": owner,
		"repositoryUrl":  "git://" + strings.TrimPrefix(d.c.Server.URL, "https://") + "/" + ev.Repo.FullName + ".git",
		"retention_days": strconv.Itoa(d.c.Server.Retention), "secret_source": secretSource(ev),
		"run_id": run.ID.String(), "run_number": strconv.Itoa(run.Number), "run_attempt": strconv.Itoa(max(1, run.Attempt)),
		"sha": ev.SHA, "token": token, "workflow": run.WorkflowName,
		"workflow_ref": ev.Repo.FullName + "/" + run.WorkflowFile + "@" + ev.Ref, "workflow_sha": ev.SHA,
	}
}

// withEvent adds the event to a github context, for expressions that are evaluated here and not in the runner.
func withEvent(github map[string]any, payload json.RawMessage) map[string]any {
	var event map[string]any
	if json.Unmarshal(payload, &event) != nil {
		event = map[string]any{}
	}
	github["event"] = event
	return github
}

// payloadOf is the event of a run as jobs see it. GitHub fills in the defaults of a workflow_dispatch's inputs before it
// sends the event; one that was made here, or by a script, may lack them. They are text there, whatever their type.
func payloadOf(ev tgr.Event, p *workflow.Plan) json.RawMessage {
	if ev.Name != "workflow_dispatch" || len(p.Inputs) == 0 {
		return ev.Payload
	}
	var event map[string]json.RawMessage
	var inputs map[string]any
	if json.Unmarshal(ev.Payload, &event) != nil || event["inputs"] != nil && json.Unmarshal(event["inputs"], &inputs) != nil {
		return ev.Payload
	}
	given := make(map[string]bool, len(inputs))
	for name := range inputs {
		given[strings.ToLower(name)] = true
	}
	filled := maps.Clone(inputs)
	if filled == nil {
		filled = map[string]any{}
	}
	for name, v := range p.Inputs {
		if !given[strings.ToLower(name)] {
			filled[name] = workflow.InputText(v)
		}
	}
	if len(filled) == len(inputs) {
		return ev.Payload
	}
	if event == nil {
		event = map[string]json.RawMessage{}
	}
	var err error
	if event["inputs"], err = json.Marshal(filled); err != nil {
		return ev.Payload
	}
	payload, err := json.Marshal(event)
	if err != nil {
		return ev.Payload
	}
	return payload
}

// defaultRef is the ref of a repository's default branch.
func defaultRef(r tgr.Repo) string { return "refs/heads/" + r.DefaultBranch }

// splitRef is github.ref_name and github.ref_type of a ref.
func splitRef(ref string) (name, kind string) {
	if name, ok := strings.CutPrefix(ref, "refs/heads/"); ok {
		return name, "branch"
	}
	if name, ok := strings.CutPrefix(ref, "refs/tags/"); ok {
		return name, "tag"
	}
	return strings.TrimPrefix(ref, "refs/pull/"), "branch"
}

func secretSource(ev tgr.Event) string {
	switch {
	case Trusted(ev):
		return "Actions"
	case ev.Actor == dependabot:
		return "Dependabot"
	}
	return "None"
}

func id(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}
