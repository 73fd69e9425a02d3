package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the test binary be tgr itself, for scripts and for tests that start a server as a process.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tgr": main})
}

// TestScripts runs the scripts: each is a folder, some commands and what they print. They use process isolation;
// TestDemo and the tests of vm/qemu have real machines.
func TestScripts(t *testing.T) {
	agent := buildAgent(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir+"/.home")
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/.cache")
			e.Setenv("TGR_DATA_DIR", e.WorkDir+"/.data")
			e.Setenv("TGR_CONFIG", "")
			e.Setenv("TGR_AGENT", agent)
			e.Setenv("TGR_ISOLATION", "process")
			e.Setenv("NO_COLOR", "1")
			for _, name := range []string{"GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"} {
				e.Setenv(name, "Ada")
			}
			for _, name := range []string{"GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"} {
				e.Setenv(name, "ada@example.com")
			}
			return os.MkdirAll(e.WorkDir+"/.home", 0o700)
		},
	})
}

// buildAgent builds the guest's agent, once for the tests of this package.
func buildAgent(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tgr-agent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	agent := filepath.Join(dir, "tgr-guest")
	cmd := exec.Command("go", "build", "-o", agent, "../tgr-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("build the agent: %w\n%s", err, out))
	}
	return agent
}
