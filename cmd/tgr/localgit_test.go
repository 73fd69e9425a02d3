package main

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestPlainRepo reads repositories both ways: what the files say is what git says, or else git is asked.
func TestPlainRepo(t *testing.T) {
	git := func(dir string, args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@localhost"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	change := func(dir string) { git(dir, "commit", "-q", "--allow-empty", "-m", "subject\n\nbody") }
	upstream := filepath.Join(t.TempDir(), "up")
	if err := os.MkdirAll(upstream, 0o755); err != nil {
		t.Fatal(err)
	}
	git(upstream, "init", "-q", "-b", "trunk")
	change(upstream)
	for _, c := range []struct {
		name  string
		plain bool
		make  func(dir string)
		below string // where it is looked at from
	}{
		{name: "no commit", plain: true, make: func(dir string) { git(dir, "init", "-q") }},
		{name: "one commit", plain: true, make: func(dir string) { git(dir, "init", "-q", "-b", "main"); change(dir) }},
		{name: "below its top", plain: true, below: "a/b", make: func(dir string) { git(dir, "init", "-q", "-b", "x/y"); change(dir) }},
		{name: "a clone", plain: true, make: func(dir string) { git(dir, "clone", "-q", upstream, "."); git(dir, "checkout", "-q", "-b", "main") }},
		{name: "packed", plain: true, make: func(dir string) {
			git(dir, "clone", "-q", upstream, ".")
			git(dir, "branch", "master")
			git(dir, "pack-refs", "--all")
		}},
		{name: "quotes in the URL", make: func(dir string) {
			git(dir, "init", "-q", "-b", "main")
			git(dir, "remote", "add", "origin", `https://example.com/o/r;x`)
			change(dir)
		}},
		{name: "two URLs", make: func(dir string) {
			git(dir, "init", "-q", "-b", "main")
			git(dir, "config", "remote.origin.url", "https://example.com/a/b")
			git(dir, "config", "--add", "remote.origin.url", "https://example.com/c/d")
			change(dir)
		}},
		{name: "detached", make: func(dir string) {
			git(dir, "init", "-q", "-b", "main")
			change(dir)
			git(dir, "checkout", "-q", "--detach")
		}},
		{name: "included configuration", make: func(dir string) {
			git(dir, "init", "-q", "-b", "main")
			change(dir)
			if err := os.WriteFile(filepath.Join(dir, "more"), []byte("[remote \"origin\"]\nurl = https://example.com/o/r\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			git(dir, "config", "include.path", "../more")
		}},
		{name: "a worktree", below: "tree", make: func(dir string) {
			git(dir, "init", "-q", "-b", "main")
			change(dir)
			git(dir, "worktree", "add", "-q", "tree")
		}},
		{name: "no repository", make: func(string) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(dir)
			from := filepath.Join(dir, c.below)
			if err := os.MkdirAll(from, 0o755); err != nil {
				t.Fatal(err)
			}
			if _, ok := readPlainRepo(from); ok != c.plain {
				t.Fatalf("plain: %v, want %v", ok, c.plain)
			}
			asked := &localSource{dir: from, log: slog.New(slog.DiscardHandler)}
			if err := asked.ask(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, err := openLocalSource(t.Context(), from, "", asked.log)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(asked, got, cmp.AllowUnexported(localSource{}, commit{}),
				cmpopts.IgnoreFields(localSource{}, "snapshot", "log")); diff != "" && c.name != "no commit" && c.name != "no repository" {
				t.Errorf("-asked +read:\n%s", diff)
			}
		})
	}
}
