package workflow

import (
	"fmt"
	"slices"
	"strings"
)

// Trigger is an event as on: sees it.
type Trigger struct {
	Event     string                   // push, pull_request, …: the name of the webhook's event
	Action    string                   // the activity type; "" where the event has none
	Ref       string                   // github.ref: refs/heads/main, refs/tags/v1, refs/pull/7/merge
	BaseRef   string                   // target branch of a pull request or merge group, with or without refs/heads/
	HeadRef   string                   // source branch of a pull request; of workflow_run, its head branch
	Deleted   bool                     // a push that deletes its ref
	Changed   func() ([]string, error) // paths that changed; asked for only if a paths filter has to decide; nil: not known, the filter passes
	Inputs    map[string]string        // of workflow_dispatch, as they were sent
	Workflow  string                   // of workflow_run: the name of the workflow that ran
	EventType string                   // of repository_dispatch: the event_type
	Cron      string                   // of schedule: the cron line that is due; "": any
	Image     string                   // of image_version: the image's name
	Version   string                   // of image_version
}

// Match is a workflow's answer to a Trigger.
type Match struct {
	OK     bool
	Reason string // where not OK: which filter said no, as "branches: 'feature/x' matches none of 'main', 'releases/**'"
	Err    error  // where not nil, the question could not be answered: Changed failed
}

// Match says whether the event starts the workflow.
func (w *Workflow) Match(t Trigger) Match {
	e := w.On(t.Event)
	if e == nil {
		return no("on: the workflow does not listen to '%s'", t.Event)
	}
	if t.Event == "push" && t.Deleted {
		return no("push: '%s' was deleted", t.Ref)
	}
	if reason := e.matchType(&t); reason != "" {
		return Match{Reason: reason}
	}
	if reason := e.matchRef(&t); reason != "" {
		return Match{Reason: reason}
	}
	if reason := e.matchRest(&t); reason != "" {
		return Match{Reason: reason}
	}
	return e.matchPaths(&t)
}

func no(format string, args ...any) Match { return Match{Reason: fmt.Sprintf(format, args...)} }

// matchType compares the activity type with those written or, if none are, with the event's defaults.
func (e *Event) matchType(t *Trigger) string {
	if e.Name == "repository_dispatch" {
		if e.Types != nil && !slices.Contains(e.Types, t.EventType) {
			return fmt.Sprintf("types: '%s' is none of %s", t.EventType, list(e.Types))
		}
		return ""
	}
	types, which := e.Types, "types"
	if types == nil {
		kind, _ := eventNamed(e.Name)
		types, which = kind.defaults, "default types"
	}
	if types == nil || t.Action == "" || slices.Contains(types, t.Action) {
		return ""
	}
	return fmt.Sprintf("%s: '%s' is none of %s", which, t.Action, list(types))
}

// matchRef applies the branch and tag filters.
func (e *Event) matchRef(t *Trigger) string {
	switch e.Name {
	case "push":
		if tag, ok := strings.CutPrefix(t.Ref, "refs/tags/"); ok {
			if e.Tags == nil && e.TagsIgnore == nil && (e.Branches != nil || e.BranchesIgnore != nil) {
				return fmt.Sprintf("tags: there are only filters for branches, and '%s' is a tag", tag)
			}
			return refFilters(tag, "tags", e.Tags, e.TagsIgnore)
		}
		branch := branchOf(t.Ref)
		if e.Branches == nil && e.BranchesIgnore == nil && (e.Tags != nil || e.TagsIgnore != nil) {
			return fmt.Sprintf("branches: there are only filters for tags, and '%s' is a branch", branch)
		}
		return refFilters(branch, "branches", e.Branches, e.BranchesIgnore)
	case "pull_request", "pull_request_target", "merge_group":
		return refFilters(branchOf(t.BaseRef), "branches", e.Branches, e.BranchesIgnore)
	case "workflow_run":
		return refFilters(branchOf(t.HeadRef), "branches", e.Branches, e.BranchesIgnore)
	}
	return ""
}

func branchOf(ref string) string { return strings.TrimPrefix(ref, "refs/heads/") }

func refFilters(name, key string, only, ignore []string) string {
	if only != nil && !compileFilter(only).match(name) {
		return fmt.Sprintf("%s: '%s' matches none of %s", key, name, list(only))
	}
	if ignore != nil && compileFilter(ignore).match(name) {
		return fmt.Sprintf("%s-ignore: '%s' matches one of %s", key, name, list(ignore))
	}
	return ""
}

// matchRest applies the filters that only one event has.
func (e *Event) matchRest(t *Trigger) string {
	switch e.Name {
	case "workflow_run":
		if e.Workflows != nil && !slices.Contains(e.Workflows, t.Workflow) {
			return fmt.Sprintf("workflows: '%s' is none of %s", t.Workflow, list(e.Workflows))
		}
	case "schedule":
		if t.Cron != "" && !slices.ContainsFunc(e.Schedules, func(s Schedule) bool { return sameCron(s.Cron, t.Cron) }) {
			return fmt.Sprintf("schedule: there is no cron entry '%s'", t.Cron)
		}
	case "image_version":
		if e.Names != nil && !compileFilter(e.Names).match(t.Image) {
			return fmt.Sprintf("names: '%s' matches none of %s", t.Image, list(e.Names))
		}
		if e.Versions != nil && !compileFilter(e.Versions).match(t.Version) {
			return fmt.Sprintf("versions: '%s' matches none of %s", t.Version, list(e.Versions))
		}
	}
	return ""
}

func sameCron(a, b string) bool { return slices.Equal(strings.Fields(a), strings.Fields(b)) }

// matchPaths applies the path filters, which GitHub does not for tags. One changed file that matches is enough for
// paths; paths-ignore says no if it matches all of them.
func (e *Event) matchPaths(t *Trigger) Match {
	if e.Paths == nil && e.PathsIgnore == nil || t.Changed == nil || strings.HasPrefix(t.Ref, "refs/tags/") {
		return Match{OK: true}
	}
	changed, err := t.Changed()
	if err != nil {
		return Match{Err: fmt.Errorf("paths: the changed files are not known: %w", err), Reason: "paths: the changed files are not known"}
	}
	if e.Paths != nil && !slices.ContainsFunc(changed, compileFilter(e.Paths).match) {
		return no("paths: none of %d changed files matches %s", len(changed), list(e.Paths))
	}
	if e.PathsIgnore != nil {
		ignore := compileFilter(e.PathsIgnore)
		if !slices.ContainsFunc(changed, func(p string) bool { return !ignore.match(p) }) {
			return no("paths-ignore: each of %d changed files matches one of %s", len(changed), list(e.PathsIgnore))
		}
	}
	return Match{OK: true}
}
