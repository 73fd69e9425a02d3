package workflow

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// suite returns a path of the conformance data, which is kept beside the module and not in it.
func suite(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join("..", "..", "shared", "suites", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("CONFORMANCE DATA ABSENT: %v", err)
	}
	return path
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decode[T any](t testing.TB, data []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// realFile is an entry of workflows.json.
type realFile struct {
	File   string
	Events []string
	Jobs   []struct {
		ID    string
		Needs []string
		Steps []string
	}
}

func TestRealWorkflows(t *testing.T) {
	dir := suite(t, "workflows")
	for _, f := range decode[[]realFile](t, readFile(t, suite(t, "workflows.json"))) {
		w, problems := Parse(f.File, readFile(t, filepath.Join(dir, f.File)))
		for _, p := range problems {
			if p.Severity == SeverityError {
				t.Errorf("%v\n%s", p, p.Excerpt)
			}
		}
		if w == nil {
			continue
		}
		var events []string
		for _, e := range w.Events {
			events = append(events, e.Name)
		}
		if diff := cmp.Diff(f.Events, events); diff != "" {
			t.Errorf("%s: events (-want +got)\n%s", f.File, diff)
		}
		if len(w.Jobs) != len(f.Jobs) {
			t.Errorf("%s: got %d jobs, want %d", f.File, len(w.Jobs), len(f.Jobs))
			continue
		}
		for i, want := range f.Jobs {
			got := w.Jobs[i]
			ids := []string{}
			for _, s := range got.Steps {
				ids = append(ids, s.ID)
			}
			if diff := cmp.Diff(append(append([]string{want.ID}, want.Needs...), want.Steps...), append(append([]string{got.Key}, got.Needs...), ids...)); diff != "" {
				t.Errorf("%s: job %s (-want +got)\n%s", f.File, want.ID, diff)
			}
		}
		if _, problems := Compile(w, Options{Trigger: Trigger{Event: "push"}}); Failed(problems) {
			t.Errorf("%s: %v", f.File, problems)
		}
	}
}

var documentEnd = regexp.MustCompile(`(?m)^---[ \t]*\r?$\n?`)

// TestWorkflowReader runs GitHub's own parser tests: accepted or refused at the same places, and the same structure.
func TestWorkflowReader(t *testing.T) {
	dir := suite(t, "workflow-reader")
	files, _ := filepath.Glob(filepath.Join(dir, "*.yml"))
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			docs := documentEnd.Split(string(readFile(t, file)), -1)
			var want readerResult
			if err := json.Unmarshal([]byte(docs[len(docs)-1]), &want); err != nil {
				t.Fatal(err)
			}
			reusable := map[string]string{}
			for i := 2; i+1 < len(docs)-1; i += 2 {
				reusable[strings.TrimSpace(docs[i])] = docs[i+1]
			}
			if strings.Contains(docs[0], "skip-reusable-workflows: true") {
				reusable = nil
			}
			want.check(t, ".github/workflows/"+name, docs[1], reusable)
		})
	}
}

type readerResult struct {
	Errors      []struct{ Message string }
	Permissions map[string]string
	Jobs        []readerJob
}

type readerJob struct {
	Type, ID    any
	Needs       []any
	If          any
	Permissions map[string]string
	Strategy    any
	Uses        any `json:"ref"`
	Steps       []struct{ ID, If any }
	Jobs        []readerJob
}

var errorPlace = regexp.MustCompile(`\(Line: (\d+), Col: (\d+)\)`)

func (want *readerResult) check(t *testing.T, file, src string, reusable map[string]string) {
	w, problems := Parse(file, []byte(src))
	var p *Plan
	if w != nil && !Failed(problems) {
		var more []Problem
		p, more = Compile(w, Options{Trigger: Trigger{Event: "push"}, Load: func(uses string) (Loaded, error) {
			if reusable == nil {
				return Loaded{}, nil
			}
			return Loaded{File: uses, Data: []byte(reusable[uses])}, nil
		}})
		problems = append(problems, more...)
	}
	places := map[string]bool{}
	for _, e := range want.Errors {
		if m := errorPlace.FindStringSubmatch(e.Message); m != nil {
			places[m[1]+":"+m[2]] = true
		}
	}
	got := map[string]bool{}
	for _, p := range problems {
		if p.Severity == SeverityError {
			got[strconv.Itoa(p.Line)+":"+strconv.Itoa(p.Column)] = true
		}
	}
	if diff := cmp.Diff(places, got); diff != "" {
		t.Errorf("errors (-want +got)\n%s%v", diff, problems)
	}
	if p == nil || len(want.Errors) > 0 {
		return
	}
	if diff := cmp.Diff(wantJobs(want.Jobs), gotJobs(t, p)); diff != "" {
		t.Errorf("jobs (-want +got)\n%s", diff)
	}
	if want.Permissions != nil && !cmp.Equal(want.Permissions, map[string]string(p.Permissions)) {
		t.Errorf("permissions: got %v, want %v", p.Permissions, want.Permissions)
	}
}

// structure is what is compared of a job.
type structure struct {
	ID          string
	Needs       []string
	If          string
	Steps       []string
	Matrix      string
	Permissions map[string]string
	Jobs        []structure
}

func wantJobs(jobs []readerJob) []structure {
	var out []structure
	for _, j := range jobs {
		s := structure{ID: literalOf(j.ID), If: literalOf(j.If), Permissions: j.Permissions, Jobs: wantJobs(j.Jobs)}
		for _, n := range j.Needs {
			s.Needs = append(s.Needs, literalOf(n))
		}
		for _, st := range j.Steps {
			s.Steps = append(s.Steps, literalOf(st.ID)+": "+literalOf(st.If))
		}
		if m, ok := j.Strategy.(map[string]any); ok {
			for _, p := range m["map"].([]any) {
				if p := p.(map[string]any); literalOf(p["Key"]) == "matrix" {
					s.Matrix = canonical(p["Value"])
				}
			}
		}
		out = append(out, s)
	}
	return out
}

func gotJobs(t *testing.T, p *Plan) []structure {
	var out []structure
	for _, j := range p.Jobs {
		s := structure{ID: j.Key, Needs: j.Needs, If: j.If, Permissions: j.Permissions}
		if s.Permissions == nil {
			s.Permissions = p.Permissions
		}
		if j.Call != nil {
			s.Jobs = gotJobs(t, j.Call.Plan)
		}
		for _, st := range j.Steps {
			iff := st.If
			if st.Wait != nil || st.WaitAll || st.Cancel != "" {
				iff = ""
			}
			s.Steps = append(s.Steps, st.ID+": "+iff)
		}
		if j.Strategy != nil && j.Strategy.Matrix != nil {
			s.Matrix = string(j.Strategy.Matrix)
		}
		out = append(out, s)
	}
	return out
}

// literalOf reads a token of the expected JSON: a plain value, or one with its type and place.
func literalOf(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case map[string]any:
		if e, ok := v["expr"]; ok {
			return fmt.Sprint(e)
		}
		return fmt.Sprint(v["lit"])
	}
	return fmt.Sprint(v)
}

// canonical writes a token of the expected JSON as Strategy.Matrix has it.
func canonical(v any) string {
	m, ok := v.(map[string]any)
	if !ok {
		if s, ok := v.(string); ok && s == "Infinity" {
			return `"${{ Infinity }}"`
		}
		b, _ := json.Marshal(v)
		return string(b)
	}
	var parts []string
	switch m["type"].(float64) {
	case 0:
		return canonical(m["lit"])
	case 1:
		for _, item := range m["seq"].([]any) {
			parts = append(parts, canonical(item))
		}
		return "[" + strings.Join(parts, ",") + "]"
	case 2:
		for _, p := range m["map"].([]any) {
			p := p.(map[string]any)
			parts = append(parts, canonical(p["Key"])+":"+canonical(p["Value"]))
		}
		return "{" + strings.Join(parts, ",") + "}"
	case 3:
		return canonical(fmt.Sprintf("${{ %v }}", m["expr"]))
	case 5:
		return canonical(m["bool"])
	case 6:
		return canonical(m["num"])
	}
	return "null"
}

func TestFilterPatterns(t *testing.T) {
	type row struct {
		Patterns       []string
		Match          []string
		NoMatch        []string `json:"nomatch"`
		ImpliedNoMatch []string `json:"implied_nomatch"`
	}
	all := decode[map[string]any](t, readFile(t, suite(t, "filter-patterns.json")))
	for _, key := range []string{"ref", "path"} {
		raw, _ := json.Marshal(all[key])
		for _, r := range decode[[]row](t, raw) {
			f := compileFilter(r.Patterns)
			for _, s := range r.Match {
				if !f.match(s) {
					t.Errorf("%s: %q does not match %q", key, r.Patterns, s)
				}
			}
			for _, s := range slices.Concat(r.NoMatch, r.ImpliedNoMatch) {
				if f.match(s) {
					t.Errorf("%s: %q matches %q", key, r.Patterns, s)
				}
			}
		}
	}
}

// BenchmarkRealWorkflows parses and plans one of the real files per operation.
func BenchmarkRealWorkflows(b *testing.B) {
	dir := suite(b, "workflows")
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	srcs := make([][]byte, len(files))
	for i, f := range files {
		srcs[i] = readFile(b, f)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		w, _ := Parse(files[i%len(files)], srcs[i%len(files)])
		if w != nil {
			Compile(w, Options{Trigger: Trigger{Event: "push"}})
		}
		i++
	}
}
