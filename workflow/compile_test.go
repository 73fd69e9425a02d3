package workflow

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// library answers Load from a map of sources.
func library(files map[string]string) func(string) (Loaded, error) {
	return func(uses string) (Loaded, error) {
		src, ok := files[uses]
		if !ok {
			return Loaded{}, fmt.Errorf("no such workflow: %s", uses)
		}
		return Loaded{File: uses, Data: []byte(src)}, nil
	}
}

const callee = `
on:
  workflow_call:
    inputs:
      level: {type: number, required: true}
      dry: {type: boolean, default: true}
      who: {type: string, default: '${{ github.actor }}'}
      note: {type: string}
    secrets: {token: {required: true}, other: {}}
    outputs: {url: {value: 'https://${{ jobs.go.outputs.host }}/${{ inputs.level }}'}}
jobs: {go: {runs-on: x, outputs: {host: h}}}
`

func calling(job string) string {
	return "on: push\njobs:\n  a:\n    uses: ./.github/workflows/callee.yml\n    " + strings.ReplaceAll(job, "\n", "\n    ") + "\n"
}

func TestReusableWorkflow(t *testing.T) {
	load := library(map[string]string{"./.github/workflows/callee.yml": callee})
	p := compiled(t, calling("with: {level: \"${{ matrix.n }}\", DRY: false}\nsecrets: {token: '${{ secrets.A }}'}\nstrategy: {matrix: {n: [1, 2]}}"), Options{Load: load})
	j := p.Job("a")
	if j.Call == nil || j.Call.Plan.Job("go") == nil || j.Call.File != "./.github/workflows/callee.yml" {
		t.Fatalf("got %+v", j.Call)
	}
	s := &Scope{GitHub: map[string]any{"actor": "me"}, Secrets: map[string]string{"A": "x", "B": "y"}}
	in, err := j.Expand(p, s)
	if err != nil || len(in) != 2 || in[1].Name != "a (2)" || in[1].RunsOn != nil {
		t.Fatalf("got %+v, %v", in, err)
	}
	inputs, secrets, err := j.EvalCall(p, s, &in[1])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"level": 2.0, "dry": false, "who": "me", "note": ""}, inputs); diff != "" {
		t.Errorf("inputs (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"token": "x"}, secrets); diff != "" {
		t.Errorf("secrets (-want +got)\n%s", diff)
	}
	out, err := j.Call.EvalOutputs(&Scope{Inputs: inputs}, map[string]Need{"go": {Result: "success", Outputs: map[string]string{"host": "h"}}})
	if err != nil || out["url"] != "https://h/2" {
		t.Errorf("outputs: got %v, %v", out, err)
	}
	long := strings.Repeat("é", MaxOutputs/2-len("url")-len("https:///2"))
	for more, want := range map[string]string{"": "", "x": "on.workflow_call.outputs.url: with it the outputs have more than 1048576 bytes, in UTF-16"} {
		_, err := j.Call.EvalOutputs(&Scope{Inputs: inputs}, map[string]Need{"go": {Outputs: map[string]string{"host": long + more}}})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("outputs of %d characters: got %v, want %q", len(long+more)/2, err, want)
		}
	}

	p = compiled(t, calling("with: {level: 3}\nsecrets: inherit"), Options{Load: load})
	if _, secrets, err = p.Job("a").EvalCall(p, s, &Instance{}); err != nil || !cmp.Equal(secrets, s.Secrets) {
		t.Errorf("inherited secrets: got %v, %v", secrets, err)
	}
	p = compiled(t, calling("with: {level: \"${{ format('high') }}\"}\nsecrets: inherit"), Options{Load: load})
	if _, _, err = p.Job("a").EvalCall(p, s, &Instance{}); err == nil || err.Error() != "ci.yml:5:19: jobs.a.with.level: the input 'level' is 'high' and not a number" {
		t.Errorf("wrong type: got %v", err)
	}
}

func TestReusableWorkflowProblems(t *testing.T) {
	chain := map[string]string{}
	for i := range 12 {
		chain[fmt.Sprintf("o/r/.github/workflows/%d.yml@v1", i)] = fmt.Sprintf("on: workflow_call\njobs: {a: {uses: ./.github/workflows/%d.yml}}\n", i+1)
	}
	files := map[string]string{
		"./.github/workflows/callee.yml":     callee,
		"o/r/.github/workflows/push.yml@v1":  "on: push\njobs: {a: {runs-on: x}}\n",
		"o/r/.github/workflows/loop.yml@v1":  "on: workflow_call\njobs: {a: {uses: ./.github/workflows/loop.yml}}\n",
		"o/r/.github/workflows/wrong.yml@v1": "on: workflow_call\njobs: {a: {runs-on: x, stesp: []}}\n",
		"o/r/.github/workflows/write.yml@v1": "on: workflow_call\njobs: {a: {runs-on: x, permissions: {contents: write}}}\n",
		"o/r/.github/workflows/plain.yml@v1": "on: workflow_call\njobs: {a: {runs-on: x}}\n",
	}
	for k, v := range chain {
		files[k] = v
	}
	remote := func(name, more string) string {
		return "on: push\npermissions: {contents: read}\njobs:\n  a:\n    uses: o/r/.github/workflows/" + name + "@v1\n" + more
	}
	for _, tt := range []struct{ src, want string }{
		{calling("secrets: inherit"), "ci.yml:4:11: the input 'level' is required, but not provided while calling"},
		{calling("with: {level: 1}"), "ci.yml:4:11: the secret 'token' is required, but not provided while calling"},
		{calling("with: {level: 1, levle: 2}\nsecrets: inherit"), "ci.yml:5:29: invalid input: 'levle' is not defined in the referenced workflow; did you mean 'level'?"},
		{calling("with: {level: high}\nsecrets: inherit"), "ci.yml:5:19: the input 'level' is 'high' and not a number"},
		{calling("with: {level: 1}\nsecrets: {token: a, tokne: b}"), "ci.yml:6:32: invalid secret: 'tokne' is not defined in the referenced workflow"},
		{remote("gone.yml", ""), "ci.yml:5:11: error calling workflow 'o/r/.github/workflows/gone.yml@v1': no such workflow: o/r/.github/workflows/gone.yml@v1"},
		{remote("push.yml", ""), "ci.yml:5:11: error calling workflow 'o/r/.github/workflows/push.yml@v1': the workflow is not reusable, as it does not listen to 'workflow_call'"},
		{remote("loop.yml", ""), "o/r/.github/workflows/loop.yml@v1:2:18: error calling workflow './.github/workflows/loop.yml': it calls itself, directly or through another workflow"},
		{remote("wrong.yml", ""), "o/r/.github/workflows/wrong.yml@v1:2:24: unexpected value 'stesp'; did you mean 'steps'?"},
		{remote("write.yml", ""), "ci.yml:5:11: error calling workflow 'o/r/.github/workflows/write.yml@v1': its job 'a' requests 'contents: write', but is only allowed 'contents: read'"},
		{remote("write.yml", "    permissions: {contents: write}\n"), ""},
		{remote("0.yml", ""), "o/r/.github/workflows/8.yml@v1:2:18: error calling workflow './.github/workflows/9.yml': reusable workflows are nested more than 10 levels deep"},
		{remote("plain.yml", ""), ""},
	} {
		w, problems := Parse("ci.yml", []byte(tt.src))
		if Failed(problems) {
			t.Fatalf("%s: %s", tt.src, report(problems))
		}
		p, problems := Compile(w, Options{Load: library(files)})
		var got []string
		for _, p := range problems {
			got = append(got, p.Error())
		}
		if s := strings.Join(got, "\n"); s != tt.want || (p == nil) != (tt.want != "") {
			t.Errorf("%s\ngot  %s\nwant %s", tt.src, s, tt.want)
		}
	}
}

// Secrets are inherited by workflows of the same owner as the one that calls, wherever that is; of another owner they miss
// those that they require.
func TestInheritedSecrets(t *testing.T) {
	load := library(map[string]string{
		"./.github/workflows/own.yml":            "on: {workflow_call: {secrets: {A: {required: true}}}}\njobs: {a: {runs-on: x}}\n",
		"o/r/.github/workflows/in.yml@v1":        "on: workflow_call\njobs: {a: {runs-on: x}}\n",
		"o/r/.github/workflows/needs.yml@v1":     "on: {workflow_call: {secrets: {A: {required: true}}}}\njobs: {a: {runs-on: x}}\n",
		"o/r/.github/workflows/out.yml@v1":       "on: workflow_call\njobs: {a: {uses: other/r/.github/workflows/in.yml@v1, secrets: inherit}}\n",
		"o/r/.github/workflows/on.yml@v1":        "on: workflow_call\njobs: {a: {uses: ./.github/workflows/needs.yml, secrets: inherit}}\n",
		"other/r/.github/workflows/in.yml@v1":    "on: workflow_call\njobs: {a: {runs-on: x}}\n",
		"other/r/.github/workflows/needs.yml@v1": "on: {workflow_call: {secrets: {A: {required: true}}}}\njobs: {a: {runs-on: x}}\n",
	})
	const warning = "the workflow '%s' inherits no secrets, as it is of another owner; pass those that it needs by name"
	in := fmt.Sprintf("ci.yml:5:14: warning: "+warning+" [secrets]", "other/r/.github/workflows/in.yml@v1")
	for _, tt := range []struct{ repo, uses, want string }{
		{"o/app", "./.github/workflows/own.yml", ""},
		{"o/app", "o/r/.github/workflows/needs.yml@v1", ""},
		{"O/app", "o/r/.github/workflows/needs.yml@v1", ""},
		{"o/app", "o/r/.github/workflows/on.yml@v1", ""},
		{"", "other/r/.github/workflows/needs.yml@v1", ""}, // whose workflow it is, nobody knows
		{"o/app", "other/r/.github/workflows/in.yml@v1", in},
		{"o/app", "o/r/.github/workflows/out.yml@v1", fmt.Sprintf("o/r/.github/workflows/out.yml@v1:2:64: warning: "+warning+" [secrets]", "other/r/.github/workflows/in.yml@v1")},
		{"o/app", "other/r/.github/workflows/needs.yml@v1", fmt.Sprintf("ci.yml:5:14: warning: "+warning+" [secrets]\n", "other/r/.github/workflows/needs.yml@v1") +
			"ci.yml:4:11: error: the secret 'A' is required, but not provided while calling [secrets]"},
	} {
		w, problems := Parse("ci.yml", []byte("on: push\njobs:\n  a:\n    uses: "+tt.uses+"\n    secrets: inherit\n"))
		if Failed(problems) {
			t.Fatal(report(problems))
		}
		p, problems := Compile(w, Options{Load: load, Repo: tt.repo})
		var got []string
		for _, p := range problems {
			got = append(got, p.String())
		}
		if s := strings.Join(got, "\n"); s != tt.want {
			t.Errorf("%q calls %s:\n%s\nwant\n%s", tt.repo, tt.uses, s, tt.want)
		}
		if p == nil {
			continue
		}
		j := p.Job("a")
		_, secrets, err := j.EvalCall(p, &Scope{Secrets: map[string]string{"A": "x"}}, &Instance{})
		_, told := j.Uninherited(p)
		if want := tt.want != in; err != nil || (secrets["A"] == "x") != want || told == want {
			t.Errorf("%q calls %s with %v, %v, and it is told %v; want A passed: %v", tt.repo, tt.uses, secrets, err, told, want)
		}
	}
	// What is not loaded is judged by its name.
	w, _ := Parse("ci.yml", []byte("on: push\njobs:\n  a:\n    uses: other/r/.github/workflows/in.yml@v1\n    secrets: inherit\n"))
	if _, problems := Compile(w, Options{Repo: "o/app"}); len(problems) != 1 || problems[0].String() != in {
		t.Errorf("a workflow that is not available: %v", problems)
	}
}

func TestNarrowedPermissions(t *testing.T) {
	src := "on: push\npermissions: {contents: read}\njobs:\n  a:\n    uses: o/r/.github/workflows/x.yml@v1\n    permissions: {issues: write}\n"
	p := compiled(t, src, Options{Load: library(map[string]string{"o/r/.github/workflows/x.yml@v1": "on: workflow_call\njobs: {a: {runs-on: x}}\n"})})
	if diff := cmp.Diff(Permissions{"issues": "write"}, p.Job("a").Call.Plan.Permissions); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestReusableWorkflowNotAvailable(t *testing.T) {
	for _, load := range []func(string) (Loaded, error){nil, func(string) (Loaded, error) { return Loaded{}, nil }} {
		p := compiled(t, calling("with: {x: 1}"), Options{Load: load})
		if j := p.Job("a"); j.Call != nil || j.Uses == "" {
			t.Errorf("got %+v", j)
		}
	}
	w, _ := Parse("ci.yml", []byte(calling("")))
	broken := errors.New("network")
	if p, problems := Compile(w, Options{Load: func(string) (Loaded, error) { return Loaded{}, broken }}); p != nil || len(problems) != 1 {
		t.Errorf("got %v, %v", p, problems)
	}
}

func TestTooManyCallees(t *testing.T) {
	files := map[string]string{}
	src := "on: push\njobs:\n"
	for i := range 4 {
		name := fmt.Sprintf("o/r/.github/workflows/%d.yml@v1", i)
		files[name] = "on: workflow_call\njobs: {a: {runs-on: x}}\n"
		src += fmt.Sprintf("  j%d: {uses: %s}\n  k%d: {uses: %s}\n", i, name, i, name)
	}
	w, _ := Parse("ci.yml", []byte(src))
	if _, problems := Compile(w, Options{Load: library(files), Limits: Limits{Callees: 4}}); len(problems) > 0 {
		t.Errorf("four of four: %v", problems)
	}
	if _, problems := Compile(w, Options{Load: library(files), Limits: Limits{Callees: 3}}); !Failed(problems) || !strings.Contains(problems[0].Message, "at most 3 reusable workflows") {
		t.Errorf("four of three: %v", problems)
	}
}

// Ten levels of workflows that each call the next one thrice would be 59,049 jobs, out of 600 bytes.
func TestTooManyCalledJobs(t *testing.T) {
	files := map[string]string{}
	for i := range 9 {
		uses := fmt.Sprintf("{uses: ./.github/workflows/%d.yml}", i+1)
		files[fmt.Sprintf("./.github/workflows/%d.yml", i)] = fmt.Sprintf("on: workflow_call\njobs: {a: %s, b: %s, c: %s}\n", uses, uses, uses)
	}
	files["./.github/workflows/9.yml"] = "on: workflow_call\njobs: {a: {runs-on: x}}\n"
	w, _ := Parse("ci.yml", []byte("on: push\njobs: {a: {uses: ./.github/workflows/1.yml}}\n"))
	if _, problems := Compile(w, Options{Load: library(files)}); !Failed(problems) || !strings.Contains(fmt.Sprint(problems), "more than 2000 jobs together") {
		t.Errorf("got %.300v", problems)
	}
}

func TestDispatchInputs(t *testing.T) {
	const src = `
on:
  workflow_dispatch:
    inputs:
      text: {default: hello}
      flag: {type: boolean}
      n: {type: number, default: 1.5}
      pick: {type: choice, options: [a, b], default: b}
      env: {type: environment, required: true}
jobs: {a: {runs-on: x}}
`
	for _, tt := range []struct {
		given map[string]string
		want  map[string]any
		err   string
	}{
		{map[string]string{"env": "prod"}, map[string]any{"text": "hello", "flag": false, "n": 1.5, "pick": "b", "env": "prod"}, ""},
		{map[string]string{"ENV": "e", "text": "", "flag": "true", "n": "0x10", "pick": "a"},
			map[string]any{"text": "", "flag": true, "n": 16.0, "pick": "a", "env": "e"}, ""},
		{map[string]string{}, nil, "ci.yml:3:3: the input 'env' is required"},
		{map[string]string{"env": "e", "flag": "yes"}, nil, "ci.yml:3:3: the input 'flag' is 'yes' and not 'true' or 'false'"},
		{map[string]string{"env": "e", "n": "one"}, nil, "ci.yml:3:3: the input 'n' is 'one' and not a number"},
		{map[string]string{"env": "e", "pick": "c"}, nil, "ci.yml:3:3: the input 'pick' is 'c' and not one of 'a', 'b'"},
		{map[string]string{"env": "e", "pikc": "a"}, nil, "ci.yml:3:3: the workflow has no input 'pikc'; did you mean 'pick'?"},
		{map[string]string{"env": strings.Repeat("e", maxDispatchInput+1)}, nil, "ci.yml:3:3: the inputs are longer than 65535 bytes together"},
	} {
		w, _ := Parse("ci.yml", []byte(src))
		p, problems := Compile(w, Options{Trigger: Trigger{Event: "workflow_dispatch", Inputs: tt.given}})
		if tt.err != "" {
			if len(problems) != 1 || problems[0].Error() != tt.err || p != nil {
				t.Errorf("%.60v: got %v, want %s", tt.given, problems, tt.err)
			}
			continue
		}
		if len(problems) > 0 {
			t.Errorf("%v: %v", tt.given, problems)
			continue
		}
		if diff := cmp.Diff(tt.want, p.Inputs); diff != "" {
			t.Errorf("%v (-want +got)\n%s", tt.given, diff)
		}
	}
}
