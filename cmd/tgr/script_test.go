package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the test binary be tgr itself, for scripts and for tests that start a server as a process.
func TestMain(m *testing.M) {
	testscript.Main(tidyM{m}, map[string]func(){"tgr": main})
}

// tidyM removes what was built for the tests.
type tidyM struct{ *testing.M }

func (m tidyM) Run() int {
	defer os.RemoveAll(buildDir())
	return m.M.Run()
}

var buildDir = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "tgr-built-")
	if err != nil {
		panic(err)
	}
	return dir
})

// builder builds a program without the race detector, once for the tests of this package.
func builder(pkg string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		file := filepath.Join(buildDir(), filepath.Base(pkg))
		cmd := exec.Command("go", "build", "-o", file, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
		return file, nil
	})
}

var (
	guestBuilt = builder("github.com/terraphim/tgr/cmd/tgr-guest")
	tgrBuilt   = builder("github.com/terraphim/tgr/cmd/tgr")
)

// buildAgent is where the guest's agent is.
func buildAgent(t *testing.T) string {
	t.Helper()
	agent, err := guestBuilt()
	if err != nil {
		t.Fatal(err)
	}
	return agent
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
