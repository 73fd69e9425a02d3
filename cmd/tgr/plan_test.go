package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func planRepository() map[string]string {
	return map[string]string{
		".github/workflows/ci.yml": `on:
  push: {branches: [main], paths: ['**.go']}
  pull_request: {types: [labeled]}
jobs:
  lint: {runs-on: x}
  test:
    needs: lint
    runs-on: x
    strategy: {matrix: {go: [1, 2], os: "${{ fromJSON('[\"l\"]') }}"}}
  dynamic:
    needs: lint
    runs-on: x
    strategy: {matrix: "${{ fromJSON(needs.lint.outputs.m) }}"}
  never: {runs-on: x, if: "github.ref == 'refs/heads/other'"}
  call: {uses: ./.github/workflows/callee.yml}
`,
		".github/workflows/callee.yml": "on: workflow_call\njobs: {x: {runs-on: x}}\n",
		".github/workflows/manual.yml": "on: {workflow_dispatch: {inputs: {n: {type: number, required: true}}}}\njobs: {a: {runs-on: x}}\n",
		"pr.json":                      `{"action": "labeled", "pull_request": {"base": {"ref": "main"}, "head": {"ref": "topic"}}}`,
		"dispatch.json":                `{"inputs": {"n": "7"}, "ref": "refs/heads/main"}`,
		"wrong.json":                   `{"inputs": {"n": "x"}}`,
	}
}

func TestPlanText(t *testing.T) {
	workspace(t, planRepository())
	for _, tt := range []struct {
		args string
		want string
		code int
	}{
		{"--event push --changed a/b.go .github/workflows/ci.yml", `.github/workflows/ci.yml: runs on push
  lint
  test (needs lint)
    test (1, l)
    test (2, l)
  dynamic (needs lint): depends on lint
  never: skipped: if: success() && (github.ref == 'refs/heads/other')
  call calls ./.github/workflows/callee.yml
`, 0},
		{"--event push --ref dev .", `.github/workflows/callee.yml: does not run: on: the workflow does not listen to 'push'
.github/workflows/ci.yml: does not run: branches: 'dev' matches none of 'main'
.github/workflows/manual.yml: does not run: on: the workflow does not listen to 'push'
`, 0},
		{"--event push --ref v1.0 .github/workflows/ci.yml", ".github/workflows/ci.yml: does not run: tags: there are only filters for branches, and 'v1.0' is a tag\n", 0},
		{"--event push --changed x.md .github/workflows/ci.yml", ".github/workflows/ci.yml: does not run: paths: none of 1 changed files matches '**.go'\n", 0},
		{"--event pull_request --payload wrong.json .github/workflows/callee.yml", ".github/workflows/callee.yml: does not run: on: the workflow does not listen to 'pull_request'\n", 0},
		{"--event workflow_dispatch --payload dispatch.json .github/workflows/manual.yml", ".github/workflows/manual.yml: runs on workflow_dispatch\n  a\n", 0},
		{"--event workflow_dispatch --payload wrong.json .github/workflows/manual.yml", `.github/workflows/manual.yml: does not run: the file has errors
  .github/workflows/manual.yml:1:6: the input 'n' is 'x' and not a number
`, 2},
	} {
		out, code := verb(t, newPlanCmd(), strings.Fields(tt.args)...)
		if diff := cmp.Diff(tt.want, out); diff != "" || code != tt.code {
			t.Errorf("%s: exit status %d (-want +got)\n%s", tt.args, code, diff)
		}
	}
}

func TestPlanJSON(t *testing.T) {
	workspace(t, planRepository())
	out, code := verb(t, newPlanCmd(), "--json", "--event", "pull_request", "--payload", "pr.json", ".")
	if code != 0 {
		t.Fatalf("exit status %d: %s", code, out)
	}
	var got []plannedFile
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].Runs || !got[1].Runs || got[1].Plan == nil || got[1].Plan.Job("call").Call == nil {
		t.Errorf("got %s", out)
	}
	if diff := cmp.Diff([]string{"test (1, l)", "test (2, l)"}, got[1].Jobs[1].Instances); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPlanUsage(t *testing.T) {
	workspace(t, planRepository())
	for _, args := range []string{"--event pushh .", "--event push nowhere", "--event push --payload nowhere .", "--event push --payload .github/workflows/ci.yml ."} {
		if out, code := verb(t, newPlanCmd(), strings.Fields(args)...); code != 2 {
			t.Errorf("%s: exit status %d: %s", args, code, out)
		}
	}
}
