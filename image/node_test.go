package image

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A runtime is fetched once, whoever asks for it at the same time, and runs.
func TestNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("fetches Node from the npm registry")
	}
	dir := filepath.Join(t.TempDir(), "node")
	if err := os.MkdirAll(filepath.Join(dir, "node24-24.21.0.partial", "bin"), 0o755); err != nil { // of one that was killed
		t.Fatal(err)
	}
	var fetched sync.Map
	n := Nodes{Dir: dir, Progress: func(step string, done, total int64) {
		if done == total {
			if _, twice := fetched.LoadOrStore(step, true); twice {
				t.Errorf("%s: done twice", step)
			}
		}
	}}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			path, err := n.Path(t.Context(), "node24")
			if err != nil {
				t.Error(err)
				return
			}
			if out, err := exec.Command(path, "--version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "v24.") {
				t.Errorf("%s --version: %q, %v", path, out, err)
			}
		})
	}
	all.Wait()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 { // the runtime and its lock
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := (Nodes{Dir: dir, Registry: "http://127.0.0.1:1"}).Path(t.Context(), "node24"); err != nil {
		t.Errorf("a runtime that is there was fetched: %v", err)
	}
}

func TestNodesRefused(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("something else")) }))
	defer srv.Close()
	n := Nodes{Dir: filepath.Join(t.TempDir(), "node"), Registry: srv.URL}
	for name, want := range map[string]string{"node20": "the registry served something else", "node16": "does not exist", "../node20": "does not exist", "": "does not exist"} {
		path, err := n.Path(t.Context(), name)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, fs.ErrNotExist) != (want == "does not exist") {
			t.Errorf("%q: %s, %v; want %s", name, path, err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(n.Dir, "*", "*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
