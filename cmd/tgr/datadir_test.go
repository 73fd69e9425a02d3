package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
)

// Nobody else reads what the server writes, whatever umask it is started with, and a data folder that was open is closed.
func TestServeFileModes(t *testing.T) {
	s := openSite(t)
	s.stop()
	data := filepath.Join(s.data, "data")
	if err := os.Chmod(data, 0o755); err != nil {
		t.Fatal(err)
	}
	s.umask = "000"
	s.start()
	if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data folder has mode %v, %v", info.Mode(), err)
	}
	if !strings.Contains(s.logged(), "others could look into the data folder") {
		t.Error("the log does not say that the data folder was open")
	}
	repo := s.repo("acme/bridge", map[string]string{".github/workflows/ci.yml": `
on: push
jobs:
  a:
    runs-on: ubuntu-latest
    steps:
      - run: echo hello
`})
	s.tgr(newSecretCmd(), "hunter2", "set", "DEPLOY", "-R", "acme/bridge")
	if d := s.completed(s.send("push", repo.PushEvent("refs/heads/main", githubtest.Zero, repo.SHA("main"))))[0]; d.Conclusion != tgr.Success {
		t.Fatalf("run %s: %s", d.Conclusion, d.Reason)
	}
	seen := map[string]bool{}
	err := filepath.WalkDir(data, func(path string, f fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := f.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(data, path)
		seen[name] = true
		if mode := info.Mode(); mode&fs.ModeSymlink == 0 && mode.Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", name, mode)
		}
		if f.IsDir() && strings.HasPrefix(name, "repos"+string(filepath.Separator)) {
			return fs.SkipDir // what git makes below
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tgr.db", "tgr.db-wal", "lock", "secrets.key", "logs", "repos", "results", "results/results.db", "results/keys"} {
		if !seen[name] {
			t.Errorf("there is no %s: %v", name, seen)
		}
	}
}
