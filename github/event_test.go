package github

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
)

// example is a payload of the conformance data: real ones, of every event.
type example struct {
	event string
	body  []byte
}

func examples(t testing.TB) []example {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "shared", "suites", "webhooks.json"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("no conformance data: ../../shared/suites/webhooks.json is absent")
	}
	if err != nil {
		t.Fatal(err)
	}
	var groups []struct {
		Name     string
		Examples []json.RawMessage
	}
	if err := json.Unmarshal(data, &groups); err != nil {
		t.Fatal(err)
	}
	var all []example
	for _, g := range groups {
		for _, e := range g.Examples {
			all = append(all, example{g.Name, e})
		}
	}
	return all
}

// at looks a dotted path up in decoded JSON: a second, independent reading of the payload.
func at(v any, path string) any {
	for part := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[part]
	}
	return v
}

func str(v any, path string) string {
	s, _ := at(v, path).(string)
	return s
}

// expected derives ref and sha from a payload by the documented rule of its event.
func expected(event string, v any) (ref, sha string) {
	switch event {
	case "push":
		if at(v, "deleted") == true {
			return str(v, "ref"), ""
		}
		return str(v, "ref"), str(v, "after")
	case "pull_request", "pull_request_review", "pull_request_review_comment":
		ref = "refs/pull/2/merge"
		if at(v, "pull_request.merged") == true {
			ref = "refs/heads/" + str(v, "pull_request.base.ref")
		}
		if sha = str(v, "pull_request.merge_commit_sha"); sha == "" {
			sha = str(v, "pull_request.head.sha")
		}
		return ref, sha
	case "create":
		return "refs/tags/" + str(v, "ref"), "" // all of the examples are tags
	case "deployment", "deployment_status":
		return "refs/heads/" + str(v, "deployment.ref"), str(v, "deployment.sha")
	case "release":
		return "refs/tags/" + str(v, "release.tag_name"), ""
	case "merge_group":
		return str(v, "merge_group.head_ref"), str(v, "merge_group.head_sha")
	case "workflow_dispatch":
		return str(v, "ref"), ""
	case "ping", "installation", "installation_repositories", "workflow_job":
		return "", ""
	}
	return "refs/heads/" + str(v, "repository.default_branch"), ""
}

func TestDecodeExamples(t *testing.T) {
	events := map[string]int{}
	for _, e := range examples(t) {
		ev, err := Decode(e.event, e.body)
		if err != nil {
			t.Errorf("%s: %v", e.event, err)
			continue
		}
		events[ev.Name]++
		var v any
		if err := json.Unmarshal(e.body, &v); err != nil {
			t.Fatal(err)
		}
		type summary struct{ Name, Action, Ref, SHA, Actor, Repo, Branch, CloneURL string }
		ref, sha := expected(e.event, v)
		want := summary{e.event, str(v, "action"), ref, sha, str(v, "sender.login"), str(v, "repository.full_name"),
			str(v, "repository.default_branch"), str(v, "repository.clone_url")}
		got := summary{ev.Name, ev.Action, ev.Ref, ev.SHA, ev.Actor, ev.Repo.FullName, ev.Repo.DefaultBranch, ev.Repo.CloneURL}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s %s: %s", e.event, ev.Action, diff)
		}
		if id, _ := at(v, "repository.id").(float64); int64(id) != ev.Repo.ID {
			t.Errorf("%s: repository %d, want %v", e.event, ev.Repo.ID, id)
		}
		if string(ev.Payload) != string(e.body) {
			t.Errorf("%s: the payload is not what was sent", e.event)
		}
	}
	if total := len(slices.Collect(maps.Keys(events))); total != 30 {
		t.Errorf("%d events, want 30: %v", total, events)
	}
}

const repository = `"repository":{"id":7,"full_name":"ada/engine","clone_url":"https://github.com/ada/engine.git","default_branch":"trunk"},"sender":{"login":"ada","id":3}`

var (
	shaA = strings.Repeat("a", 40)
	shaB = strings.Repeat("b", 40)
	shaC = strings.Repeat("c", 40)
)

func pullPayload(extra string) string {
	return `{"action":"opened","number":9,"pull_request":{"number":9,"head":{"sha":"` + shaA + `","ref":"topic","repo":{"id":7}},"base":{"sha":"` +
		shaB + `","ref":"trunk","repo":{"id":7}}` + extra + `},` + repository + `}`
}

func TestDecodeDerives(t *testing.T) {
	forked := strings.Replace(pullPayload(""), `"repo":{"id":7}`, `"repo":{"id":8}`, 1)
	deletedFork := strings.Replace(pullPayload(""), `"repo":{"id":7}`, `"repo":null`, 1)
	for _, tt := range []struct {
		name, event, body string
		want              tgr.Event
	}{
		{"pull request without a merge yet", "pull_request", pullPayload(`,"merge_commit_sha":null`),
			tgr.Event{Ref: "refs/pull/9/merge", SHA: shaA, HeadSHA: shaA, BaseSHA: shaB, HeadRef: "topic", BaseRef: "trunk", Number: 9}},
		{"pull request with its merge", "pull_request", pullPayload(`,"merge_commit_sha":"` + shaC + `"`),
			tgr.Event{Ref: "refs/pull/9/merge", SHA: shaC, HeadSHA: shaA, BaseSHA: shaB, HeadRef: "topic", BaseRef: "trunk", Number: 9}},
		{"merged pull request", "pull_request", pullPayload(`,"merged":true,"merge_commit_sha":"` + shaC + `"`),
			tgr.Event{Ref: "refs/heads/trunk", SHA: shaC, HeadSHA: shaA, BaseSHA: shaB, HeadRef: "topic", BaseRef: "trunk", Number: 9}},
		{"pull request of a fork", "pull_request", forked,
			tgr.Event{Ref: "refs/pull/9/merge", SHA: shaA, HeadSHA: shaA, BaseSHA: shaB, HeadRef: "topic", BaseRef: "trunk", Number: 9, Forked: true}},
		{"pull request of a deleted fork", "pull_request", deletedFork,
			tgr.Event{Ref: "refs/pull/9/merge", SHA: shaA, HeadSHA: shaA, BaseSHA: shaB, HeadRef: "topic", BaseRef: "trunk", Number: 9, Forked: true}},
		{"target of a pull request", "pull_request_target", strings.ReplaceAll(forked, `"ref":"trunk"`, `"ref":"old"`),
			tgr.Event{Ref: "refs/heads/trunk", HeadSHA: shaA, BaseSHA: shaB, HeadRef: "topic", BaseRef: "old", Number: 9, Forked: true}},
		{"push of a branch", "push", `{"ref":"refs/heads/x/y","before":"` + shaA + `","after":"` + shaB + `",` + repository + `}`,
			tgr.Event{Ref: "refs/heads/x/y", SHA: shaB, HeadSHA: shaB, BaseSHA: shaA}},
		{"deleting push, by its commit alone", "push", `{"ref":"refs/heads/x","before":"` + shaA + `","after":"` + strings.Repeat("0", 40) + `",` + repository + `}`,
			tgr.Event{Ref: "refs/heads/x", BaseSHA: shaA, Deleted: true}},
		{"new branch", "create", `{"ref":"x","ref_type":"branch",` + repository + `}`, tgr.Event{Ref: "refs/heads/x"}},
		{"deployment of a commit", "deployment", `{"deployment":{"sha":"` + shaA + `","ref":"` + shaA + `"},` + repository + `}`,
			tgr.Event{SHA: shaA, HeadSHA: shaA}},
		{"dispatch by the name of a branch", "workflow_dispatch", `{"ref":"x",` + repository + `}`, tgr.Event{Ref: "refs/heads/x"}},
		{"comment of an issue", "issue_comment", `{"action":"created","issue":{"number":4},` + repository + `}`, tgr.Event{Ref: "refs/heads/trunk", Number: 4}},
		{"names are compared exactly", "push", `{"ref":"refs/heads/x","REF":"refs/heads/y","after":"` + shaB + `","After":"` + shaA + `",` + repository + `}`,
			tgr.Event{Ref: "refs/heads/x", SHA: shaB, HeadSHA: shaB}},
		{"escaped names are decoded", "push", `{"r\u0065f":"refs/heads/\u00fc","after":"` + shaB + `",` + repository + `}`,
			tgr.Event{Ref: "refs/heads/ü", SHA: shaB, HeadSHA: shaB}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Decode(tt.event, []byte(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Name, tt.want.Actor, tt.want.ActorID = tt.event, "ada", 3
			tt.want.Repo = tgr.Repo{ID: 7, FullName: "ada/engine", CloneURL: "https://github.com/ada/engine.git", DefaultBranch: "trunk"}
			got.Payload, tt.want.Action = nil, got.Action
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	push := func(ref, after string) string {
		return `{"ref":"` + ref + `","after":"` + after + `",` + repository + `}`
	}
	for _, tt := range []struct{ name, event, body, says string }{
		{"event's name", "Push; DROP", push("refs/heads/x", shaA), "not the name of an event"},
		{"no JSON", "push", "nonsense", "byte 0"},
		{"empty", "push", "", "byte 0"},
		{"array", "push", "[]", "expected an object"},
		{"cut off", "push", push("refs/heads/x", shaA)[:30], "unexpected end"},
		{"two documents", "push", push("refs/heads/x", shaA) + "{}", "data after"},
		{"nesting", "push", `{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}", "deeper than"},
		{"twice", "push", `{"ref":"a","ref":"b"}`, `"ref" occurs twice`},
		{"twice, escaped", "push", `{"ref":"a","\u0072ef":"b"}`, `"ref" occurs twice`},
		{"twice, among many", "push", `{` + manyNames(40) + `,"n3":1}`, `"n3" occurs twice`},
		{"NaN", "push", `{"a":NaN}`, "expected a value"},
		{"number", "push", `{"a":01}`, "malformed number"},
		{"long number", "push", `{"a":` + strings.Repeat("1", 65) + `}`, "64 characters"},
		{"long string", "push", `{"a":"` + strings.Repeat("x", 10<<20) + `"}`, "a string of more than"},
		{"UTF-8", "push", "{\"a\":\"\xff\"}", "invalid UTF-8"},
		{"NUL", "push", `{"a":"\u0000"}`, "NUL"},
		{"half a pair", "push", `{"a":"\ud800"}`, "half a surrogate pair"},
		{"wrong pair", "push", `{"a":"\ud800\u0041"}`, "half a surrogate pair"},
		{"escape", "push", `{"a":"\x"}`, "unknown escape"},
		{"raw control character", "push", "{\"a\":\"\n\"}", "control character"},
		{"no repository", "push", `{"ref":"refs/heads/x","after":"` + shaA + `"}`, "repository.id is missing"},
		{"type", "push", `{"ref":7,` + repository + `}`, "ref is not a string"},
		{"climbing repository", "push", strings.Replace(push("refs/heads/x", shaA), "ada/engine", "../..", 1), "not owner/name"},
		{"clone URL", "push", strings.Replace(push("refs/heads/x", shaA), "https:", "ext:", 1), "clone_url"},
		{"negative id", "push", strings.Replace(push("refs/heads/x", shaA), `"id":7`, `"id":-7`, 1), "whole number"},
		{"commit", "push", push("refs/heads/x", "--exec=id"), "not a SHA"},
		{"ref that climbs", "push", push("refs/heads/../../config", shaA), "ref is not valid"},
		{"ref that is a revision", "push", push("refs/heads/a^{}", shaA), "ref is not valid"},
		{"short ref", "push", push("main", shaA), "needs ref"},
		{"control character in a ref", "push", push(`refs/heads/a\nb`, shaA), "control characters"},
		{"pull request without head", "pull_request", `{"number":9,"pull_request":{},` + repository + `}`, "needs number"},
		{"release without tag", "release", `{"release":{},` + repository + `}`, "tag_name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decode(tt.event, []byte(tt.body))
			if tgr.CodeOf(err) != tgr.Invalid || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one of code invalid that says %q", err, tt.says)
			}
			if err != nil && len(err.Error()) > 500 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"n` + string(rune('0'+i%10)) + strings.Repeat("_", i/10) + `":0`)
	}
	return b.String()
}

// FuzzDecode checks that nothing panics, that what is accepted is JSON to the standard library too, and that refs
// and commits of accepted events are harmless as arguments and paths.
func FuzzDecode(f *testing.F) {
	f.Add("push", []byte(`{"ref":"refs/heads/x","after":"`+shaA+`",`+repository+`}`))
	f.Add("pull_request", []byte(pullPayload("")))
	f.Add("ping", []byte(`{"zen":"\ud83d\ude00 \u00fc","n":-1.5e+3,"a":[true,false,null,{}]}`))
	f.Add("create", []byte(`{"ref":"x","ref_type":"tag",`+repository+`}`))
	f.Fuzz(func(t *testing.T, event string, body []byte) {
		ev, err := Decode(event, body)
		if err != nil {
			if tgr.CodeOf(err) != tgr.Invalid {
				t.Errorf("code of %v", err)
			}
			return
		}
		var v map[string]any
		if err := json.Unmarshal(body, &v); err != nil {
			t.Errorf("accepted what encoding/json refuses: %v", err)
		}
		if action := str(v, "action"); action != ev.Action {
			t.Errorf("action %q, encoding/json says %q", ev.Action, action)
		}
		for _, s := range []string{ev.Ref, ev.SHA, ev.HeadSHA, ev.BaseSHA} {
			if Triggers(event) && (strings.HasPrefix(s, "-") || strings.Contains(s, "..") || strings.ContainsAny(s, " \n\x00")) {
				t.Errorf("accepted %q", s)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	all := examples(b)
	for b.Loop() {
		for _, e := range all {
			if _, err := Decode(e.event, e.body); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(all)), "µs/payload")
}
