package runner

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/workflow"
)

func TestArgs(t *testing.T) {
	for format, want := range map[string][]string{
		bashNamed:                       {"bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "/s"},
		`pwsh -command ". '{0}'"`:       {"pwsh", "-command", ". '/s'"},
		`script -q -e -c "bash -e {0}"`: {"script", "-q", "-e", "-c", "bash -e /s"},
		`a  "b c" d"e f"g`:              {"a", "b c", "de fg"},
		`a "" \"x\" 'y z'`:              {"a", "", `"x"`, "'y", "z'"},
		`cp {0} x{0}y`:                  {"cp", "/s", "x/sy"},
		``:                              nil,
		`unfinished "quote {0}`:         {"unfinished", "quote /s"},
	} {
		if diff := cmp.Diff(want, args(format, "/s")); diff != "" {
			t.Errorf("%s: -want +got:\n%s", format, diff)
		}
	}
}

func TestShellOf(t *testing.T) {
	for name, want := range map[string]string{
		"": "bash -e {0}|.sh", "bash": bashNamed + "|.sh", "sh": "sh -e {0}|.sh", "python": "python {0}|.py",
		"pwsh": `pwsh -command ". '{0}'"|.ps1`, "/usr/bin/bash -l {0}": "/usr/bin/bash -l {0}|.sh", "Rscript {0}": "Rscript {0}|",
	} {
		sh, err := shellOf(name, "f", workflow.Pos{})
		if got := sh.format + "|" + sh.ext; err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", name, got, err, want)
		}
	}
	if _, err := shellOf("cmd", "ci.yml", workflow.Pos{Line: 3, Column: 5}); err == nil || !strings.HasPrefix(err.Error(), "ci.yml:3:5: ") {
		t.Errorf("cmd: %v", err)
	}
	for _, name := range []string{"pwsh", `pwsh -NoProfile -command ". '{0}'"`} {
		if sh, _ := shellOf(name, "", workflow.Pos{}); !strings.Contains(sh.wrap("x"), "= 'stop'\nx\n") {
			t.Errorf("%s: %q", name, sh.wrap("x"))
		}
	}
}

func FuzzArgs(f *testing.F) {
	f.Add(`bash "a b" {0}`)
	f.Add(`\"\\"`)
	f.Fuzz(func(t *testing.T, format string) {
		n := 0
		for _, a := range args(format, "{0}") {
			n += len(a)
		}
		if n > len(format) {
			t.Fatalf("%q grew", format)
		}
	})
}
