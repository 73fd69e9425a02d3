package workflow

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	changed := func(paths ...string) func() ([]string, error) {
		return func() ([]string, error) { return paths, nil }
	}
	for _, tt := range []struct {
		on      string
		trigger Trigger
		want    string // the reason; "" if it matches
	}{
		{"push", Trigger{Event: "push", Ref: "refs/heads/x"}, ""},
		{"push", Trigger{Event: "pull_request"}, "on: the workflow does not listen to 'pull_request'"},
		{"push", Trigger{Event: "push", Ref: "refs/heads/x", Deleted: true}, "push: 'refs/heads/x' was deleted"},
		{"{push: {branches: main}}", Trigger{Event: "push", Ref: "refs/heads/main"}, ""},
		{"{push: {branches: [main]}}", Trigger{Event: "push", Ref: "refs/heads/Main"}, "branches: 'Main' matches none of 'main'"},
		{"{push: {branches: [main]}}", Trigger{Event: "push", Ref: "refs/tags/main"}, "tags: there are only filters for branches, and 'main' is a tag"},
		{"{push: {tags: ['v*']}}", Trigger{Event: "push", Ref: "refs/heads/v1"}, "branches: there are only filters for tags, and 'v1' is a branch"},
		{"{push: {tags: ['v*', '!v*-rc']}}", Trigger{Event: "push", Ref: "refs/tags/v1-rc"}, "tags: 'v1-rc' matches none of 'v*', '!v*-rc'"},
		{"{push: {tags-ignore: ['v*']}}", Trigger{Event: "push", Ref: "refs/tags/v1"}, "tags-ignore: 'v1' matches one of 'v*'"},
		{"{push: {branches-ignore: ['r/**']}}", Trigger{Event: "push", Ref: "refs/heads/r/a/b"}, "branches-ignore: 'r/a/b' matches one of 'r/**'"},
		{"{push: {branches: [a], tags: [a]}}", Trigger{Event: "push", Ref: "refs/tags/a"}, ""},
		{"{push: {paths: ['**.go']}}", Trigger{Event: "push", Ref: "refs/tags/a", Changed: changed("x.md")}, ""},
		{"{push: {paths: ['**.go']}}", Trigger{Event: "push", Ref: "refs/heads/a", Changed: changed("x.md")}, "paths: none of 1 changed files matches '**.go'"},
		{"{push: {paths: ['**.go']}}", Trigger{Event: "push", Ref: "refs/heads/a", Changed: changed("x.md", "a/b.go")}, ""},
		{"{push: {paths: ['**.go', '!a/**']}}", Trigger{Event: "push", Ref: "refs/heads/a", Changed: changed("a/b.go")}, "paths: none of 1 changed files matches '**.go', '!a/**'"},
		{"{push: {paths: ['**.go']}}", Trigger{Event: "push", Ref: "refs/heads/a"}, ""},
		{"{push: {paths-ignore: ['*.md']}}", Trigger{Event: "push", Ref: "refs/heads/a", Changed: changed("x.md")}, "paths-ignore: each of 1 changed files matches one of '*.md'"},
		{"{push: {paths-ignore: ['*.md']}}", Trigger{Event: "push", Ref: "refs/heads/a", Changed: changed("x.md", "a.go")}, ""},
		{"{push: {branches: [b], paths: [x]}}", Trigger{Event: "push", Ref: "refs/heads/a", Changed: changed("x")}, "branches: 'a' matches none of 'b'"},
		{"pull_request", Trigger{Event: "pull_request", Action: "synchronize"}, ""},
		{"pull_request", Trigger{Event: "pull_request", Action: "labeled"}, "default types: 'labeled' is none of 'opened', 'synchronize', 'reopened'"},
		{"{pull_request: {types: labeled}}", Trigger{Event: "pull_request", Action: "labeled"}, ""},
		{"{pull_request: {types: [labeled]}}", Trigger{Event: "pull_request", Action: "opened"}, "types: 'opened' is none of 'labeled'"},
		{"{pull_request: {branches: main}}", Trigger{Event: "pull_request", Action: "opened", BaseRef: "main", HeadRef: "x"}, ""},
		{"{pull_request_target: {branches: main}}", Trigger{Event: "pull_request_target", Action: "opened", BaseRef: "refs/heads/dev"}, "branches: 'dev' matches none of 'main'"},
		{"issues", Trigger{Event: "issues", Action: "milestoned"}, ""},
		{"merge_group", Trigger{Event: "merge_group", Action: "destroyed"}, "default types: 'destroyed' is none of 'checks_requested'"},
		{"{merge_group: {branches: [main]}}", Trigger{Event: "merge_group", Action: "checks_requested", BaseRef: "refs/heads/main"}, ""},
		{"{repository_dispatch: {types: [go]}}", Trigger{Event: "repository_dispatch", EventType: "go"}, ""},
		{"{repository_dispatch: {types: [go]}}", Trigger{Event: "repository_dispatch", EventType: "stop"}, "types: 'stop' is none of 'go'"},
		{"repository_dispatch", Trigger{Event: "repository_dispatch", EventType: "x"}, ""},
		{"{workflow_run: {workflows: [CI], types: completed, branches: [main]}}", Trigger{Event: "workflow_run", Action: "completed", Workflow: "CI", HeadRef: "main"}, ""},
		{"{workflow_run: {workflows: [CI]}}", Trigger{Event: "workflow_run", Action: "completed", Workflow: "Other"}, "workflows: 'Other' is none of 'CI'"},
		{"{workflow_run: {workflows: [CI], branches-ignore: [x]}}", Trigger{Event: "workflow_run", Workflow: "CI", HeadRef: "x"}, "branches-ignore: 'x' matches one of 'x'"},
		{"{schedule: [{cron: '0  5 * * *'}]}", Trigger{Event: "schedule", Cron: "0 5 * * *"}, ""},
		{"{schedule: [{cron: '0 5 * * *'}]}", Trigger{Event: "schedule", Cron: "0 6 * * *"}, "schedule: there is no cron entry '0 6 * * *'"},
		{"{schedule: [{cron: '0 5 * * *'}]}", Trigger{Event: "schedule"}, ""},
		{"{image_version: {names: ['a*'], versions: [1.*]}}", Trigger{Event: "image_version", Action: "ready", Image: "ab", Version: "1.2"}, ""},
		{"{image_version: {names: ['a*']}}", Trigger{Event: "image_version", Image: "b"}, "names: 'b' matches none of 'a*'"},
		{"{image_version: {versions: ['2.*']}}", Trigger{Event: "image_version", Version: "1.0"}, "versions: '1.0' matches none of '2.*'"},
		{"[push, workflow_dispatch]", Trigger{Event: "workflow_dispatch"}, ""},
	} {
		w, problems := Parse("x.yml", []byte("on: "+tt.on+"\njobs: {a: {runs-on: x}}\n"))
		if Failed(problems) {
			t.Fatalf("%s: %v", tt.on, problems)
		}
		if m := w.Match(tt.trigger); m.OK != (tt.want == "") || m.Reason != tt.want || m.Err != nil {
			t.Errorf("on: %s with %+v: got %+v, want %q", tt.on, tt.trigger, m, tt.want)
		}
	}
}

func TestMatchFailsLoudly(t *testing.T) {
	w, _ := Parse("x.yml", []byte("on: {push: {paths: a}}\njobs: {a: {runs-on: x}}\n"))
	broken := errors.New("git is gone")
	m := w.Match(Trigger{Event: "push", Ref: "refs/heads/a", Changed: func() ([]string, error) { return nil, broken }})
	if m.OK || !errors.Is(m.Err, broken) {
		t.Errorf("got %+v", m)
	}
	asked := false
	w.Match(Trigger{Event: "pull_request", Changed: func() ([]string, error) { asked = true; return nil, nil }})
	if asked {
		t.Error("changed files were asked for without need")
	}
}

func TestPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern string
		match   string
		not     string
	}{
		{"", "", "a"},
		{"a?", "a", "aa"},
		{"a+b", "aab", "b"},
		{"+a", "+a", "a"},
		{`\*`, "*", "a"},
		{`v\+`, "v+", "vv"},
		{"[a-c]x", "bx", "dx"},
		{"[]]", "]", "["},
		{`[\]a]`, "]", `\`},
		{"[a-]", "-", "b"},
		{"a[0-9]+", "a10", "a"},
		{"*", ".hidden", "a/b"},
		{"a*c", "abbbc", "ab/c"},
		{"a**c", "ab/bc", "abd"},
		{"**/a", "a", "xa"},
		{"**/a", "x/y/a", "x/ya"},
		{"x/**/a", "x/a", "xa"},
		{"x/**/a", "x/y/z/a", "x/yza"},
		{"x/**", "x/y/z", "x"},
		{"**/**/a", "a", "b/xa"},
		{"***", "a/b", ""},
		{"ä*", "äb", "b"},
	} {
		p, err := compilePattern(tt.pattern)
		if err != nil {
			t.Errorf("%q: %v", tt.pattern, err)
			continue
		}
		if !p.match(tt.match) {
			t.Errorf("%q does not match %q", tt.pattern, tt.match)
		}
		if tt.not != "" && p.match(tt.not) {
			t.Errorf("%q matches %q", tt.pattern, tt.not)
		}
	}
	for _, bad := range []string{"[a", "[", `a\`, "[z-a]", strings.Repeat("a", maxPattern+1)} {
		if _, err := compilePattern(bad); err == nil {
			t.Errorf("%.20q was accepted", bad)
		}
	}
}

func TestPatternCost(t *testing.T) {
	p, err := compilePattern(strings.Repeat("**a", 300))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	p.match(strings.Repeat("a", 4000) + "b")
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}
