package workflow

import "slices"

// eventKind is what on: knows of one event.
type eventKind struct {
	name     string
	types    []string // activity types; nil: the event has none
	defaults []string // types that count where none are written; nil: every one
	filters  []string // keys besides types
}

// eventKinds are the events that can start a workflow, in alphabetical order.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/events-that-trigger-workflows
func eventKinds() []eventKind {
	pull := []string{"assigned", "unassigned", "labeled", "unlabeled", "milestoned", "demilestoned", "opened", "edited",
		"closed", "reopened", "synchronize", "converted_to_draft", "ready_for_review", "locked", "unlocked", "enqueued",
		"dequeued", "review_requested", "review_request_removed", "auto_merge_enabled", "auto_merge_disabled", "stacked"}
	pullDefaults := []string{"opened", "synchronize", "reopened"}
	pullFilters := []string{"branches", "branches-ignore", "paths", "paths-ignore"}
	edits := []string{"created", "edited", "deleted"}
	branches := []string{"branches", "branches-ignore"}
	return []eventKind{
		{name: "branch_protection_rule", types: edits},
		{name: "check_run", types: []string{"created", "completed", "rerequested", "requested_action"}},
		{name: "check_suite", types: []string{"completed"}, defaults: []string{"completed"}},
		{name: "create"},
		{name: "delete"},
		{name: "deployment"},
		{name: "deployment_status"},
		{name: "discussion", types: []string{"created", "edited", "deleted", "transferred", "pinned", "unpinned", "labeled",
			"unlabeled", "locked", "unlocked", "category_changed", "answered", "unanswered"}},
		{name: "discussion_comment", types: edits},
		{name: "dynamic"},
		{name: "fork"},
		{name: "gollum"},
		{name: "image_version", types: []string{"created", "ready", "deleted"}, filters: []string{"names", "versions"}},
		{name: "interactive_component"},
		{name: "issue_comment", types: edits},
		{name: "issues", types: []string{"opened", "edited", "deleted", "transferred", "pinned", "unpinned", "closed", "reopened",
			"assigned", "unassigned", "labeled", "unlabeled", "locked", "unlocked", "milestoned", "demilestoned", "typed",
			"untyped", "field_added", "field_removed"}},
		{name: "label", types: edits},
		{name: "member"},
		{name: "merge_group", types: []string{"checks_requested"}, defaults: []string{"checks_requested"}, filters: branches},
		{name: "milestone", types: []string{"created", "closed", "opened", "edited", "deleted"}},
		{name: "page_build"},
		{name: "project", types: []string{"created", "closed", "reopened", "edited", "deleted"}},
		{name: "project_card", types: []string{"created", "moved", "converted", "edited", "deleted"}},
		{name: "project_column", types: []string{"created", "updated", "moved", "deleted"}},
		{name: "public"},
		{name: "pull_request", types: pull, defaults: pullDefaults, filters: pullFilters},
		{name: "pull_request_comment", types: edits},
		{name: "pull_request_review", types: []string{"submitted", "edited", "dismissed"}},
		{name: "pull_request_review_comment", types: edits},
		{name: "pull_request_target", types: pull, defaults: pullDefaults, filters: pullFilters},
		{name: "push", filters: []string{"branches", "branches-ignore", "tags", "tags-ignore", "paths", "paths-ignore"}},
		{name: "registry_package", types: []string{"published", "updated"}},
		{name: "release", types: []string{"published", "unpublished", "created", "edited", "deleted", "prereleased", "released"}},
		{name: "repository_dispatch", types: []string{}},
		{name: "schedule"},
		{name: "status"},
		{name: "watch", types: []string{"started"}, defaults: []string{"started"}},
		{name: "workflow_call"},
		{name: "workflow_dispatch"},
		{name: "workflow_run", types: []string{"requested", "completed", "in_progress"},
			filters: []string{"workflows", "branches", "branches-ignore"}},
	}
}

// filterKeys are the filters that some event knows. On another event they have no effect, which is worth a warning.
func filterKeys() []string {
	return []string{"branches", "branches-ignore", "tags", "tags-ignore", "paths", "paths-ignore", "workflows", "names", "versions"}
}

func onShape() *shape {
	var names []string
	m := &mapping{}
	for _, e := range eventKinds() {
		names = append(names, e.name)
		m.props = append(m.props, opt(e.name, eventShape(e)))
	}
	one := &shape{name: "the name of an event", text: oneOf, words: names}
	s := *one
	s.name = "events"
	s.item = one
	s.maps = []*mapping{m}
	return &s
}

func eventShape(e eventKind) *shape {
	switch e.name {
	case "schedule":
		return seq("a sequence of cron entries", object("a mapping with cron", 0, req("cron", full(0)), opt("timezone", full(0))))
	case "workflow_dispatch":
		s := object("inputs", 0, opt("inputs", orNull(dict("a mapping of inputs", 0, dispatchInputShape()))))
		s.maps[0].ignore = true
		return orNull(s)
	case "workflow_call":
		return callShape()
	}
	filter := orNull(oneOrMore(0))
	m := &mapping{}
	for _, key := range filterKeys() {
		m.props = append(m.props, opt(key, filter))
	}
	types := oneOrMore(0)
	if len(e.types) > 0 {
		types = &shape{name: "one of " + list(e.types), text: oneOf, words: e.types, lenient: true}
		types.item = &shape{name: types.name, text: oneOf, words: e.types, lenient: true}
	}
	m.props = append(m.props, opt("types", orNull(types)), opt("reuse-previous-outcome", yesno(0)))
	return &shape{name: "filters of " + e.name, null: true, maps: []*mapping{m}}
}

func dispatchInputShape() *shape {
	return orNull(object("an input", 0,
		opt("description", str(0)),
		opt("type", word("string", "boolean", "number", "choice", "environment")),
		opt("required", yesno(0)),
		opt("default", scalars(0)),
		opt("options", seq("a sequence of strings", full(0))),
		opt("deprecationMessage", str(0))))
}

func callShape() *shape {
	input := object("an input", 0,
		opt("description", str(0)),
		req("type", word("string", "boolean", "number")),
		opt("required", yesno(0)),
		opt("default", scalars(allowRun)),
		opt("deprecationMessage", str(0)))
	secret := orNull(object("a secret", 0, opt("description", str(0)), opt("required", yesno(0))))
	output := object("an output", 0, opt("description", str(0)), req("value", str(allowRun|ctxJobs)))
	return orNull(object("inputs, outputs and secrets", 0,
		opt("inputs", dict("a mapping of inputs", 0, input)),
		opt("secrets", dict("a mapping of secrets", 0, secret)),
		opt("outputs", dict("a mapping of outputs", 0, output))))
}

// eventNamed finds an event's kind.
func eventNamed(name string) (eventKind, bool) {
	all := grammar().events
	i := slices.IndexFunc(all, func(e eventKind) bool { return e.name == name })
	if i < 0 {
		return eventKind{}, false
	}
	return all[i], true
}

// KnownEvent reports whether workflows can listen to an event of that name; where not, tip is "; did you mean 'x'?" or "".
func KnownEvent(name string) (tip string, known bool) {
	var names []string
	for _, e := range eventKinds() {
		if e.name == name {
			return "", true
		}
		names = append(names, e.name)
	}
	return similar(name, names), false
}
