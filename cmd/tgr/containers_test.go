package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/vm"
)

// Whose jobs run in containers: the trusted ones of those who asked for it.
func TestContainedOf(t *testing.T) {
	event := func(repo, name string, forked bool) tgr.Run {
		return tgr.Run{Event: tgr.Event{Name: name, Forked: forked, Repo: tgr.Repo{FullName: repo}}}
	}
	for _, tt := range []struct {
		name, isolation string
		repos           map[string]map[string]string
		run             tgr.Run
		want            bool
	}{
		{"all", "container", nil, event("acme/app", "push", false), true},
		{"all, but a fork", "container", nil, event("acme/app", "pull_request", true), false},
		{"all, a pull request of a branch", "container", nil, event("acme/app", "pull_request", false), true},
		{"one", "auto", map[string]map[string]string{"Acme/App": {"isolation": "container"}}, event("acme/app", "push", false), true},
		{"one, but a fork", "auto", map[string]map[string]string{"acme/app": {"isolation": "container"}}, event("acme/app", "pull_request", true), false},
		{"another", "auto", map[string]map[string]string{"acme/app": {"isolation": "container"}}, event("acme/other", "push", false), false},
	} {
		c := &config{values: map[string]string{"isolation": tt.isolation}, repos: tt.repos}
		contained, err := containedOf(c)
		if err != nil || contained(tt.run) != tt.want {
			t.Errorf("%s: %v, want %t", tt.name, err, tt.want)
		}
	}
	c := &config{values: map[string]string{"isolation": "auto"}}
	if contained, err := containedOf(c); contained != nil || err != nil {
		t.Errorf("nobody asked for containers: %v", err)
	}
	c.repos = map[string]map[string]string{"acme/app": {"isolation": "process"}}
	if _, err := containedOf(c); err == nil || !strings.Contains(err.Error(), "only container may be chosen for a repository") {
		t.Errorf("no isolation for one repository: %v", err)
	}
}

type machinesNamed string

func (m machinesNamed) Acquire(context.Context, dispatch.Spec) (*dispatch.Machine, func(), error) {
	return &dispatch.Machine{Isolation: string(m)}, func() {}, nil
}

func TestUntrustedGetVMs(t *testing.T) {
	contained, err := containedOf(&config{values: map[string]string{"isolation": "container"}})
	if err != nil {
		t.Fatal(err)
	}
	m := mixed{contained, machinesNamed("container"), machinesNamed("vm"), vm.Journal{}}
	for forked, want := range map[bool]string{false: "container", true: "vm"} {
		run := tgr.Run{Event: tgr.Event{Name: "pull_request", Forked: forked}}
		got, release, err := m.Acquire(t.Context(), dispatch.Spec{Run: run})
		if err != nil || got.Isolation != want {
			t.Errorf("forked %t: %+v, %v; want %s", forked, got, err, want)
		}
		release()
	}
}

func needContainers(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: CONTAINERS ARE NOT TESTED: this needs root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("SKIPPED: CONTAINERS ARE NOT TESTED: ", err)
	}
}

// A job in a container, as a user starts it.
func TestRunContainer(t *testing.T) {
	needContainers(t)
	agent := buildAgent(t)
	t.Setenv("PATH", filepath.Dir(agent)+":"+os.Getenv("PATH"))
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, workflowDir), 0o755); err != nil {
		t.Fatal(err)
	}
	const text = `
on: push
jobs:
  a:
    runs-on: ubuntu-latest
    outputs: {n: "${{ steps.s.outputs.n }}"}
    steps:
      - run: echo "root of $(tr -s ' ' < /proc/self/uid_map)" && sudo id -un; echo "$USER by $SHELL"
      - {id: s, run: 'echo n=7 >> "$GITHUB_OUTPUT"; node --version'}
  b: {needs: a, runs-on: ubuntu-latest, steps: [{run: 'echo got ${{ needs.a.outputs.n }}; ! ls /home/runner/work/*/*/left; exit 3'}]}
`
	if err := os.WriteFile(filepath.Join(dir, workflowDir, "ci.yml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tgr", "run", "-C", dir, "--isolation", "container")
	cmd.Env = append(os.Environ(), "TGR_DATA_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "image not built") {
		t.Skip("SKIPPED: CONTAINERS ARE NOT TESTED: there is no image")
	}
	for _, want := range []string{"root of  0 300000 65536", "│ root", "│ root by /bin/bash", "│ v2", "got 7", "b: failure", "[container]"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want exit status 1", err)
	}
}
