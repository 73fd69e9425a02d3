package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// workspace writes files below a new folder and makes it the working directory.
func workspace(t *testing.T, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
}

// verb runs a command and returns what it printed and its exit status.
func verb(t *testing.T, cmd *cobra.Command, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(t.Context())
	if err == nil {
		return out.String(), 0
	}
	var coded interface{ ExitCode() int }
	if !errors.As(err, &coded) {
		coded = usageError{err}
	}
	return out.String() + err.Error(), coded.ExitCode()
}

const goodWorkflow = `on: [push, pull_request]
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - parallel: [{run: a}, {run: b, id: b}]
  call:
    needs: build
    uses: ./.github/workflows/callee.yml
`

const badWorkflow = `on: push
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - runn: echo
  warn: {runs-on: x, permissions: {id-token: read}}
  gone: {uses: ./.github/workflows/gone.yml}
`

func repository() map[string]string {
	return map[string]string{
		".github/workflows/good.yml":   goodWorkflow,
		".github/workflows/bad.yaml":   badWorkflow,
		".github/workflows/callee.yml": "on: workflow_call\njobs: {x: {runs-on: x}}\n",
		"actions/a/action.yml":         "runs: {using: node20}\n",
		"compose.yml":                  "services: {}\n",
		"node_modules/x/action.yml":    "runs: 1\n",
	}
}

func TestCheckText(t *testing.T) {
	workspace(t, repository())
	out, code := verb(t, newCheckCmd(), ".")
	want := `.github/workflows/bad.yaml:6:9: error: unexpected value 'runn'; did you mean 'run'? [unexpected-key]
          - runn: echo
            ^
.github/workflows/bad.yaml:6:9: error: there is not enough info to determine what you meant; add one of these keys: 'cancel', 'parallel', 'run', 'shell', 'uses', 'wait', 'wait-all', 'with', 'working-directory' [required]
          - runn: echo
            ^
.github/workflows/bad.yaml:7:46: warning: unexpected value 'read'; expected one of 'write', 'none' [unexpected-value]
      warn: {runs-on: x, permissions: {id-token: read}}
                                                 ^
actions/a/action.yml:1:7: error: 'main' is required for an action that runs with 'node20' [required]
    runs: {using: node20}
          ^
4 files, 3 errors, 1 warning
`
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if code != 2 {
		t.Errorf("exit status %d", code)
	}
	if out, code := verb(t, newCheckCmd(), ".github/workflows/good.yml"); code != 0 || out != "1 file, 0 errors, 0 warnings\n" {
		t.Errorf("a good file: %d %s", code, out)
	}
}

func TestCheckJSON(t *testing.T) {
	workspace(t, repository())
	out, code := verb(t, newCheckCmd(), "--json", ".github/workflows/good.yml", ".github/workflows/bad.yaml")
	if code != 2 {
		t.Errorf("exit status %d", code)
	}
	var got []map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := map[string]any{
		"file": ".github/workflows/good.yml", "ok": true, "errors": []any{}, "warnings": []any{},
		"events": []any{"push", "pull_request"},
		"jobs": []any{
			map[string]any{"id": "build", "needs": []any{}, "steps": []any{"__actions_checkout", "__parallel", "__run", "b"}, "uses": ""},
			map[string]any{"id": "call", "needs": []any{"build"}, "steps": []any{}, "uses": "./.github/workflows/callee.yml"},
		},
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if e := got[1]["errors"].([]any)[0].(map[string]any); e["line"] != 6.0 || e["column"] != 9.0 || e["rule"] != "unexpected-key" {
		t.Errorf("got %v", e)
	}
}

func TestCheckFormats(t *testing.T) {
	workspace(t, repository())
	out, _ := verb(t, newCheckCmd(), "--format=github", ".github/workflows/bad.yaml")
	if want := "::error file=.github/workflows/bad.yaml,line=6,col=9,title=unexpected-key::unexpected value 'runn'; did you mean 'run'?\n"; !strings.HasPrefix(out, want) {
		t.Errorf("got %s", out)
	}
	out, _ = verb(t, newCheckCmd(), "--format=sarif", ".github/workflows/bad.yaml")
	var sarif struct {
		Version string
		Runs    []struct {
			Tool struct {
				Driver struct{ Rules []struct{ ID string } }
			}
			Results []struct {
				RuleID, Level string
				Locations     []struct {
					PhysicalLocation struct {
						Region struct{ StartLine, StartColumn int }
					}
				}
			}
		}
	}
	out = strings.TrimSuffix(out, exitError{exitUsage, nil}.Error())
	if err := json.Unmarshal([]byte(out), &sarif); err != nil {
		t.Fatal(err)
	}
	run := sarif.Runs[0]
	if sarif.Version != "2.1.0" || len(run.Results) != 3 || len(run.Tool.Driver.Rules) != 3 || run.Results[0].Locations[0].PhysicalLocation.Region.StartLine != 6 {
		t.Errorf("got %+v", sarif)
	}
}

func TestCheckUsage(t *testing.T) {
	workspace(t, map[string]string{"a.txt": "", "empty/x.txt": "", "big.yml": strings.Repeat("a: b\n", 1<<20)})
	for _, args := range [][]string{{}, {"nowhere.yml"}, {"empty"}, {"--format=xml", "big.yml"}, {"--json", "--format=text", "big.yml"}} {
		if out, code := verb(t, newCheckCmd(), args...); code != 2 || out == "" {
			t.Errorf("%v: exit status %d, %s", args, code, out)
		}
	}
	if out, code := verb(t, newCheckCmd(), "big.yml"); code != 2 || !strings.Contains(out, "the file is too large") {
		t.Errorf("a large file: %d %s", code, out)
	}
}

// lockedBuffer is a buffer that a test may read while a command writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestCheckWatch(t *testing.T) {
	workspace(t, map[string]string{"wf/a.yml": badWorkflow})
	ctx, cancel := context.WithCancel(t.Context())
	var out lockedBuffer
	cmd := newCheckCmd()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--watch", "wf"})
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()

	wait := func(text string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !strings.Contains(out.String(), text); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%q did not come: %s", text, out.String())
			}
		}
	}
	wait("1 file, 2 errors, 1 warning")
	if err := os.WriteFile("wf/a.yml", []byte("on: push\njobs: {a: {runs-on: x}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	wait("1 file, 0 errors, 0 warnings")
	if err := os.Mkdir("wf/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("wf/b.yml", []byte("on: push\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	wait("2 files, 1 error, 0 warnings")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("got %v", err)
	}
}

func TestCheckMissingWorkflow(t *testing.T) {
	workspace(t, map[string]string{".github/workflows/a.yml": "on: push\njobs: {a: {uses: ./.github/workflows/gone.yml}, b: {uses: o/r/.github/workflows/x.yml@v1}}\n"})
	out, code := verb(t, newCheckCmd(), "--json", ".github")
	want := `[
  {
    "file": ".github/workflows/a.yml",
    "ok": true,
    "errors": [],
    "warnings": [
      {
        "line": 2,
        "column": 18,
        "message": "'./.github/workflows/gone.yml' is not there",
        "rule": "uses"
      }
    ],
    "events": [
      "push"
    ],
    "jobs": [
      {
        "id": "a",
        "needs": [],
        "steps": [],
        "uses": "./.github/workflows/gone.yml"
      },
      {
        "id": "b",
        "needs": [],
        "steps": [],
        "uses": "o/r/.github/workflows/x.yml@v1"
      }
    ]
  }
]
`
	if diff := cmp.Diff(want, out); diff != "" || code != 0 {
		t.Errorf("exit status %d (-want +got)\n%s", code, diff)
	}
}
